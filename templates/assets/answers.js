// Answers of the API: each asked for once, however many charts are drawn from it.

const { root } = document.body.dataset;
let under = new Map();
let going = new AbortController();

/** Forgets what was asked; who waited for it hears nothing any more. */
export function askAnew() {
  going.abort();
  going = new AbortController();
  under = new Map();
}

/** Whether an error only says that nobody wants the answer any more. */
export const isOver = (error) => error?.name === "AbortError";

/** What the API answers at `path`. Fails with words for people. */
export function answer(path) {
  if (!under.has(path)) under.set(path, ask(path, going.signal).then((reply) => reply.json()));
  return under.get(path);
}

/** A part of the page as the server words it. */
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
    // Whatever stands between us and the monitor says it in its own way.
  }
  throw new Error(detail);
}
