"""Who somebody is: signing in with an OpenID provider, sign-ins, tokens and roles."""
