"use strict";

const one = (id) => document.getElementById(id);

/** Show who is signed in; without somebody, how to sign in. */
function show(person) {
  one("signed-in").hidden = !person;
  one("signed-out").hidden = Boolean(person);
  if (person) {
    one("name").textContent = person.name ? `, ${person.name}` : "";
    one("email").textContent = person.email ? `You are signed in as ${person.email}.` : "You are signed in.";
  }
}

/** Who is signed in, by the cookie that only the service can read; null for nobody. */
async function whoIsThere() {
  const refreshed = await fetch("/api/auth/refresh", { method: "POST" });
  const answer = await refreshed.json();
  if (refreshed.status === 401) return null;
  if (!refreshed.ok) throw new Error(answer.detail);
  const me = await fetch("/api/auth/me", { headers: { Authorization: `Bearer ${answer.access_token}` } });
  if (!me.ok) throw new Error(String(me.status));
  return me.json();
}

/** End the sign-in. */
async function signOut() {
  one("sign-out").disabled = true;
  try {
    const ended = await fetch("/api/auth/logout", { method: "POST" });
    if (!ended.ok) throw new Error(String(ended.status));
    show(null);
    one("note").textContent = "You are signed out.";
  } catch {
    one("note").textContent = "Signing out did not work; try again in a moment.";
  } finally {
    one("sign-out").disabled = false;
  }
}

one("sign-out").addEventListener("click", signOut);
whoIsThere().then(show, () => {
  one("note").textContent = "The service is busy; load this page again in a moment.";
});
