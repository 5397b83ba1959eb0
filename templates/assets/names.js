// Names that others chose: how they are shown, and where their pages are.

const { root } = document.body.dataset;
const ODD = /[\u0000-\u001f\u007f-\u009f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff]/g;

/** A name without characters that hide or turn what follows. */
export const visible = (name) => (name === "" ? "(empty)" : name.replace(ODD, (c) => `\\u{${c.codePointAt(0).toString(16)}}`));

/** The address of a name's page; `kind` is `streams` or `workers`. */
export function pageOf(kind, name) {
  // As a part of a path these mean other places, however they are written.
  if (name === "" || name === "." || name === "..") return `${root}/${kind}/?name=${name.replaceAll(".", "%2E")}`;
  return `${root}/${kind}/${encodeURIComponent(name)}`;
}

/** Whether a name has all words of a filter. */
export const fits = (name, words) => words.every((word) => name.toLowerCase().includes(word));
