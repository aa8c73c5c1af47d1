"""`python -m api.accounts.roles USER operator`: give somebody a role. USER is the id that `GET /api/auth/me` tells them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import get_args

from api.records.audit_log import SYSTEM, AuditLog
from api.records.database import Records, migrate, open_engine
from api.records.service_secrets import pepper
from api.records.tables import User
from api.schemas import Role
from api.settings import settings_or_exit
from photoflux.vault import open_keyring


def grant_role(records: Records, audit_log: AuditLog, user_id: str, role: str) -> bool:
    """Give a role; it holds from the next access token on. False when there is no such person."""
    with records.writing() as session:
        user = session.get(User, user_id, with_for_update=True)
        if user is None:
            return False
        user.role = role
        audit_log.record(session, SYSTEM, "role.given", audit_log.pseudonym(user_id), role)
    return True


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 1 when nobody has that id."""
    parser = argparse.ArgumentParser(
        prog="python -m api.accounts.roles", description=(__doc__ or "").split(":")[-1].strip()
    )
    parser.add_argument("user", help="id of the person")
    parser.add_argument("role", choices=get_args(Role))
    options = parser.parse_args(argv)
    settings = settings_or_exit()
    migrate(settings.records_url)
    records = Records(open_engine(settings.records_url))
    if not grant_role(records, AuditLog(pepper(open_keyring())), options.user, options.role):
        print(f"error: nobody here has the id {options.user}; ask them for `id` of GET /api/auth/me", file=sys.stderr)
        return 1
    print(f"{options.user} is {options.role} from the next sign-in or refresh on")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
