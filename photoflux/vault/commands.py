"""`photoflux keys`: make this machine's key-encrypting key, begin a new epoch of it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from photoflux.vault import open_keyring
from photoflux.vault.kek import create_kek, destroy_kek


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb and say what it did."""
    args = _parser().parse_args(arguments)
    if args.verb == "create":
        create_kek(args.uri)
        print(f"{args.uri} is made; back it up apart from the data, and name it in PHOTOFLUX_KEK_URI")
        return 0
    keyring = open_keyring()
    moved = keyring.rewrap()
    print(f"{moved} keysets were moved to {keyring.kek_uri}")
    if args.destroy:
        destroy_kek(args.destroy)
        print(f"{args.destroy} is destroyed: backups from before open nothing any more")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="photoflux keys", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="verb")
    create = verbs.add_parser("create", help="make a key file: photoflux keys create local-kms:///etc/photoflux/kek-2")
    create.add_argument("uri")
    rewrap = verbs.add_parser("rewrap", help="move every keyset to the key of PHOTOFLUX_KEK_URI")
    rewrap.add_argument("--destroy", metavar="URI", help="then destroy this key file, the one before")
    return parser
