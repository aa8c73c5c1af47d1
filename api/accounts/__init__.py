"""Accounts: signing in with an OpenID provider, login sessions, tokens and roles."""
