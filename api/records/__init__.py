"""What is kept of whom: tables, their migrations, the audit log, and the secrets that digests are made with."""
