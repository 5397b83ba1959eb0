// Heatmap of utilization: a strip per worker type, darker with utilization, in another hue above 100 %. Shows the
// values at the time under the pointer.

import { MISSING, percent, short } from "./figures.js";
import { fits, pageOf, visible } from "./names.js";
import { colour } from "./palette.js";
import { moment, plot } from "./plot.js";
import { column, timesOf } from "./series.js";

/** Lower bounds of the steps, as fractions of the capacity. */
const STEPS = [0, 0.001, 0.25, 0.5, 0.75, 1, 4];
const WORDS = ["idle", "below 25 %", "25 %", "50 %", "75 %", "full", "≥ 400 %"];
/** Number of strips before the "more" button. */
const ROWS = 20;
/** Row height; must match the style sheet. */
const ROW = 28;
const STRIP = 11;

const stepOf = (share) => STEPS.findLastIndex((from) => share >= from);

/** Creates the drawing of the heatmap. `words()`: the filter. */
export function heatmap({ words, of }) {
  return (frame) => {
    let all = false;
    const names = document.createElement("ol");
    names.className = "strips";
    const key = document.createElement("p");
    key.className = "heat-key";
    key.innerHTML = STEPS.map((_, i) => `<span><i class="h${i}"></i>${WORDS[i]}</span>`).join("") + '<span><i class="h7"></i>no capacity</span>';
    const more = document.createElement("button");
    more.type = "button";
    more.className = "quiet";
    more.addEventListener("click", () => {
      all = true;
      frame.redraw();
    });
    frame.legend.replaceWith(key);
    key.after(more);
    const told = document.createElement("p");
    told.className = "told";
    told.setAttribute("aria-hidden", "true");
    key.before(told);
    return {
      draw([backlogs, capacities], range) {
        const times = timesOf(backlogs);
        const rows = [];
        for (const [series, given] of Object.entries(backlogs.series)) {
          const name = series.replace("backlog:", "");
          const capacity = capacities.series[`capacity:${name}`];
          if (!fits(name, words())) continue;
          const backlog = column(given, backlogs, times, 1);
          const could = capacity ? column(capacity, capacities, times, 1) : [];
          const shares = backlog.map((b, i) => {
            const c = could[i] ?? null;
            if ((b ?? null) === null || c === null) return null;
            return c > 0 ? b / c : b > 0 ? Infinity : 0;
          });
          const peak = shares.reduce((most, share) => Math.max(most, share ?? 0), 0);
          rows.push({ name, backlog, could, shares, peak });
        }
        rows.sort((a, b) => b.peak - a.peak || (a.name < b.name ? -1 : 1));
        const shown = all ? rows : rows.slice(0, ROWS);
        more.hidden = shown.length === rows.length;
        more.textContent = `Show all ${rows.length} types`;
        frame.host.style.height = `${Math.max(3, shown.length) * ROW + 28}px`;
        const values = shown.map(({ name }) => {
          const row = document.createElement("li");
          row.innerHTML = '<a></a><b class="num"></b>';
          row.firstElementChild.textContent = row.firstElementChild.title = visible(name);
          row.firstElementChild.href = pageOf("workers", name);
          names.append(row);
          return row;
        });
        names.replaceChildren(...values);
        const paints = [0, 1, 2, 3, 4, 5, 6].map((i) => colour(`--h${i}`));
        const width = (u) => u.valToPos(times[0] + backlogs.bucket_seconds, "x", true) - u.valToPos(times[0], "x", true);
        const chart = plot(frame.host, {
          data: [times, ...shown.map(({ shares }) => shares.map((s) => (s === null ? null : 0)))],
          series: shown.map(() => ({ show: true, paths: () => null, points: { show: false } })),
          range, of, top: () => 1, quietAxis: true,
          paint: (u) => {
            const { ctx, bbox } = u;
            const dpr = devicePixelRatio || 1;
            const wide = width(u);
            ctx.save();
            ctx.rect(bbox.left, 0, bbox.width, ctx.canvas.height);
            ctx.clip();
            shown.forEach(({ shares }, row) => {
              const y = bbox.top + (row * ROW + ROW - STRIP - 2) * dpr;
              shares.forEach((share, i) => {
                if (share === null) return;
                const x = Math.floor(u.valToPos(times[i], "x", true));
                const next = Math.ceil(u.valToPos(times[i], "x", true) + wide);
                ctx.fillStyle = share === Infinity ? paints[6] : paints[stepOf(share)];
                ctx.fillRect(x, y, next - x, STRIP * dpr);
                if (share === Infinity) {
                  ctx.fillStyle = colour("--surface");
                  for (let s = x - (x % (4 * dpr)); s < next; s += 4 * dpr) ctx.fillRect(s, y, dpr, STRIP * dpr);
                }
              });
            });
            ctx.restore();
          },
          told: (at, _, u) => {
            const share = (row, i) => (row.shares[i] === null || row.shares[i] === undefined ? MISSING : row.shares[i] === Infinity ? "no capacity" : percent(row.shares[i]));
            shown.forEach((row, i) => (values[i].lastElementChild.textContent = at === null ? (row.peak === Infinity ? "" : `max ${percent(row.peak)}`) : share(row, at)));
            const under = at === null ? undefined : shown[Math.floor((u.cursor.top ?? -1) / ROW)];
            told.textContent = under && (under.backlog[at] ?? null) !== null ? `${visible(under.name)} at ${moment(times[at], range)}: ${short(under.backlog[at])} waiting, capacity ${(under.could[at] ?? null) === null ? "not known" : short(under.could[at])}, ${share(under, at)}` : "";
          },
        });
        frame.host.append(names);
        chart.setCursor({ left: -10, top: -10 });
        return rows.length === 0 ? "No worker types recorded in this time range." : "";
      },
    };
  };
}
