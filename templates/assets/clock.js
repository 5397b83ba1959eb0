// Times in the viewer's zone, and ages that grow. Ages are counted on the server's clock, so that
// a wrong clock on this machine changes nothing.

const GAP = "\u202f";
const clockFormat = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });
const dayFormat = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short" });

/** This machine's clock minus the server's, in seconds; the least ever seen is the truest. */
let ahead = null;

/** Takes note of a message that the server made at `ts` (Unix seconds) and that is here now. */
export function heard(ts) {
  if (!(ts > 0)) return;
  const seen = Date.now() / 1000 - ts;
  // Far off means that a clock was set.
  ahead = ahead === null || Math.abs(seen - ahead) > 60 ? seen : Math.min(ahead, seen);
}

/** The server's time, Unix seconds. */
export function serverNow() {
  return Date.now() / 1000 - (ahead ?? 0);
}

/** `12:04:05`, with the day when it is another one than today. */
export function clock(unix) {
  const at = new Date(unix * 1000);
  const time = clockFormat.format(at);
  return at.toDateString() === new Date().toDateString() ? time : `${dayFormat.format(at)} ${time}`;
}

const two = (n) => String(n).padStart(2, "0");

/** `3 m 20 s`. Coarser the longer it is: a page of running seconds is not calm. */
export function duration(seconds) {
  const s = Math.max(0, Math.floor(seconds));
  if (s < 10) return `${s}${GAP}s`;
  if (s < 60) return `${s - (s % 5)}${GAP}s`;
  if (s < 600) return `${Math.floor(s / 60)}${GAP}m ${two((s % 60) - (s % 10))}${GAP}s`;
  if (s < 3600) return `${Math.floor(s / 60)}${GAP}m`;
  if (s < 86400) return `${Math.floor(s / 3600)}${GAP}h ${two(Math.floor((s % 3600) / 60))}${GAP}m`;
  return `${Math.floor(s / 86400)}${GAP}d ${Math.floor((s % 86400) / 3600)}${GAP}h`;
}

/** `4 min ago`. */
function ago(seconds) {
  const s = Math.max(0, Math.floor(seconds));
  if (s < 5) return "just now";
  if (s < 60) return `${s - (s % 5)}${GAP}s ago`;
  if (s < 3600) return `${Math.floor(s / 60)}${GAP}min ago`;
  if (s < 86400) return `${Math.floor(s / 3600)}${GAP}h ago`;
  return `${Math.floor(s / 86400)}${GAP}d ago`;
}

/** Words every `time` below `root` anew. */
export function wordTimes(root) {
  const now = serverNow();
  for (const time of root.querySelectorAll("time")) {
    const unix = Date.parse(time.dateTime) / 1000;
    const { dataset } = time;
    const text = "clock" in dataset ? clock(unix) : "since" in dataset ? duration(now - unix) : ago(now - unix);
    if (time.textContent !== text) time.textContent = text;
  }
}
