// Main's HTTP API under the session of this browser. The cookie is not readable here; what changes something also carries the
// session's own word.

let session = null;
let onEnd = () => {};

export class Refused extends Error {
  constructor(status, detail) {
    super(detail);
    this.status = status;
  }
}

export function me() {
  return session;
}

export function is(...roles) {
  return Boolean(session) && roles.some((role) => session.roles.includes(role));
}

/** What happens when the session is over. */
export function ended(then) {
  onEnd = then;
}

async function send(method, path, { body, headers = {}, signal } = {}) {
  const all = { accept: "application/json", ...headers };
  if (body !== undefined) all["content-type"] = "application/json";
  if (method !== "GET" && session) all["x-longhaul-csrf"] = session.csrf;
  let response;
  try {
    response = await fetch(path, { method, headers: all, body: body === undefined ? undefined : JSON.stringify(body), signal, credentials: "same-origin", redirect: "error", cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused(0, "Main does not answer. Is it running, and is the network there?");
  }
  if (response.ok) return response;
  let detail = `Main answered with status ${response.status}.`;
  try {
    detail = (await response.json()).detail || detail;
  } catch { /* no document: the status has to do */ }
  if (response.status === 401 && session && path !== "/ui/login") {
    session = null;
    onEnd(detail);
  }
  throw new Refused(response.status, detail);
}

async function json(response) {
  return response.status === 204 ? null : response.json();
}

export async function get(path, query = {}, signal = undefined) {
  const pairs = Object.entries(query).filter(([, value]) => value !== undefined && value !== null && value !== "");
  const text = new URLSearchParams(pairs).toString();
  return json(await send("GET", text ? `${path}?${text}` : path, { signal }));
}

export async function change(method, path, body, headers) {
  return json(await send(method, path, { body, headers }));
}

/** The session that the cookie has, if it has one. */
export async function resume() {
  try {
    session = await get("/ui/session");
  } catch (error) {
    session = null;
    if (error.status !== 401) throw error;
  }
  return session;
}

export async function login(token) {
  session = await json(await send("POST", "/ui/login", { body: { token } }));
  return session;
}

export async function logout() {
  try {
    await send("POST", "/ui/logout");
  } finally {
    session = null;
  }
}

/** Follows what happens, until `signal`. A broken stream is dialled again and goes on after the last event that came. */
export async function follow(onEvent, onState, signal) {
  let last = null;
  while (!signal.aborted) {
    let pause = 2000;
    try {
      const headers = { accept: "text/event-stream" };
      if (last) headers["last-event-id"] = last;
      const response = await send("GET", "/v1/events", { headers, signal });
      onState(true);
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      let rest = "";
      for (;;) {
        const { value, done } = await reader.read();
        if (done) break;
        const blocks = (rest + value).split("\n\n");
        rest = blocks.pop();
        for (const block of blocks) {
          const lines = block.split("\n");
          const field = (name) => lines.find((line) => line.startsWith(`${name}: `))?.slice(name.length + 2);
          last = field("id") ?? last;
          const data = field("data");
          if (data) onEvent(JSON.parse(data));
        }
      }
      pause = 500;
    } catch (error) {
      if (signal.aborted || error.status === 401) return;
      // A token with scopes follows single requests only: the page looks from time to time instead.
      if (error.status === 403) pause = 60000;
    }
    onState(false);
    await new Promise((resolve) => setTimeout(resolve, pause));
  }
}
