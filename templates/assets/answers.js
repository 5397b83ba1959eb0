// API responses: each is requested once, however many charts use it.

const { root } = document.body.dataset;
let under = new Map();
let going = new AbortController();

/** Discards all responses and aborts pending requests. */
export function askAnew() {
  going.abort();
  going = new AbortController();
  under = new Map();
}

/** Whether an error only means that the request was aborted. */
export const isOver = (error) => error?.name === "AbortError";

/** Returns the API response at `path`. Rejects with a readable message. */
export function answer(path) {
  if (!under.has(path)) under.set(path, ask(path, going.signal).then((reply) => reply.json()));
  return under.get(path);
}

/** Returns a server-rendered part of the page. */
export async function element(path) {
  return (await ask(path, going.signal)).text();
}

async function ask(path, signal) {
  let reply;
  try {
    reply = await fetch(root + path, { signal });
  } catch (error) {
    if (isOver(error)) throw error;
    throw new Error("the monitor is unreachable");
  }
  if (reply.ok) return reply;
  let detail = reply.statusText || `status ${reply.status}`;
  try {
    detail = (await reply.json()).detail ?? detail;
  } catch {
    // A proxy's error response has its own format.
  }
  throw new Error(detail);
}
