// Local times and ages. Ages use the server's clock, so that a wrong clock on this machine does not matter.

const GAP = "\u202f";
const clockFormat = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });
const dayFormat = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short" });

/**
 * This machine's clock minus the server's, in seconds. The minimum is the most accurate, because delays only
 * increase it.
 */
let ahead = null;

/** Records that a message made by the server at `ts` (Unix seconds) was just received. */
export function heard(ts) {
  if (!(ts > 0)) return;
  const seen = Date.now() / 1000 - ts;
  // A large difference means that a clock was set.
  ahead = ahead === null || Math.abs(seen - ahead) > 60 ? seen : Math.min(ahead, seen);
}

/** Server time, Unix seconds. */
export function serverNow() {
  return Date.now() / 1000 - (ahead ?? 0);
}

/** Formats a time: `12:04:05`, with the date if it is not today. */
export function clock(unix) {
  const at = new Date(unix * 1000);
  const time = clockFormat.format(at);
  return at.toDateString() === new Date().toDateString() ? time : `${dayFormat.format(at)} ${time}`;
}

const two = (n) => String(n).padStart(2, "0");

/** Formats a duration: `3 m 20 s`. Longer ones are coarser, so that the page does not change every second. */
export function duration(seconds) {
  const s = Math.max(0, Math.floor(seconds));
  if (s < 10) return `${s}${GAP}s`;
  if (s < 60) return `${s - (s % 5)}${GAP}s`;
  if (s < 600) return `${Math.floor(s / 60)}${GAP}m ${two((s % 60) - (s % 10))}${GAP}s`;
  if (s < 3600) return `${Math.floor(s / 60)}${GAP}m`;
  if (s < 86400) return `${Math.floor(s / 3600)}${GAP}h ${two(Math.floor((s % 3600) / 60))}${GAP}m`;
  return `${Math.floor(s / 86400)}${GAP}d ${Math.floor((s % 86400) / 3600)}${GAP}h`;
}

/** Formats an age: `4 min ago`. */
function ago(seconds) {
  const s = Math.max(0, Math.floor(seconds));
  if (s < 5) return "just now";
  if (s < 60) return `${s - (s % 5)}${GAP}s ago`;
  if (s < 3600) return `${Math.floor(s / 60)}${GAP}min ago`;
  if (s < 86400) return `${Math.floor(s / 3600)}${GAP}h ago`;
  return `${Math.floor(s / 86400)}${GAP}d ago`;
}

/** Updates the text of every `time` element below `root`. */
export function wordTimes(root) {
  const now = serverNow();
  for (const time of root.querySelectorAll("time")) {
    const unix = Date.parse(time.dateTime) / 1000;
    const { dataset } = time;
    const text = "clock" in dataset ? clock(unix) : "since" in dataset ? duration(now - unix) : ago(now - unix);
    if (time.textContent !== text) time.textContent = text;
  }
}
