"""The records: tables and migrations, transactions on them, the audit log, and the secrets of keyed digests."""
