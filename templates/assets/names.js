// Untrusted names: display text and page URLs.

const { root } = document.body.dataset;
const ODD = /[\u0000-\u001f\u007f-\u009f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff]/g;

/** Escapes characters that hide text or change its direction. */
export const visible = (name) => (name === "" ? "(empty)" : name.replace(ODD, (c) => `\\u{${c.codePointAt(0).toString(16)}}`));

/** Returns the URL of a name's page; `kind` is `streams` or `workers`. */
export function pageOf(kind, name) {
  // As path segments these have special meanings, even when percent-encoded.
  if (name === "" || name === "." || name === "..") return `${root}/${kind}/?name=${name.replaceAll(".", "%2E")}`;
  return `${root}/${kind}/${encodeURIComponent(name)}`;
}

/** Whether a name contains all words of a filter. */
export const fits = (name, words) => words.every((word) => name.toLowerCase().includes(word));
