"use strict";

const BEFORE_END_S = 30;

/** An access token by the cookie of the sign-in, kept until shortly before it ends; null for somebody who is not signed in. */
const tokens = {
  token: null,
  until: 0,
  async get() {
    if (Date.now() < this.until) return this.token;
    const answer = await fetch("/api/auth/refresh", { method: "POST" });
    const said = await answer.json();
    const given = answer.ok ? said : null;
    this.token = given && given.access_token;
    this.until = given ? Date.now() + 1000 * (given.expires_in - BEFORE_END_S) : 0;
    return this.token;
  },
};

const page = SwaggerUIBundle({
  url: "/openapi.json",
  dom_id: "#docs",
  deepLinking: true,
  displayRequestDuration: true,
  docExpansion: "list",
  defaultModelsExpandDepth: 0,
  filter: true,
  validatorUrl: null,
  /** Send the token of the moment instead of one of this page's that has ended; a token that was typed in stays. */
  requestInterceptor: async (request) => {
    const own = tokens.token && request.headers.Authorization === `Bearer ${tokens.token}`;
    const token = own && (await tokens.get().catch(() => null));
    if (token) request.headers.Authorization = `Bearer ${token}`;
    return request;
  },
  onComplete: async () => {
    const token = await tokens.get().catch(() => null);
    if (token) page.preauthorizeApiKey("HTTPBearer", token);
    document.getElementById("signed").textContent = token
      ? "You are signed in: requests that you try here are made in your name."
      : "Not signed in.";
  },
});
