// Small multiples: one small chart per stream (run times) and per value of the servers.

import { MISSING, bytes, niceTime, niceTop, short, took } from "./figures.js";
import { fits, pageOf, visible } from "./names.js";
import { faint, look } from "./palette.js";
import { erase, moment, plot } from "./plot.js";
import { column, points, timesOf } from "./series.js";

/** Number of streams before the "more" button. */
const STREAMS = 12;

/** Creates a figure with a heading, a plot, and a line for its values. */
function multiple(heading) {
  const figure = document.createElement("figure");
  figure.className = "multiple";
  figure.innerHTML = '<figcaption></figcaption><div class="small"></div><p class="values num"></p>';
  figure.firstElementChild.append(...heading);
  return figure;
}

function words(text, tag = "span") {
  const element = document.createElement(tag);
  element.textContent = text;
  return element;
}

/** Figures of a chart by name, reused between redraws. */
class Figures {
  constructor(frame) {
    this.host = frame.host;
    this.figures = new Map();
  }

  /** Arranges the figures of `names` in this order. */
  arrange(names, heading) {
    for (const [name, figure] of this.figures) {
      if (names.includes(name)) continue;
      erase(figure.children[1]);
      this.figures.delete(name);
    }
    for (const name of names) {
      const figure = this.figures.get(name) ?? multiple([]);
      figure.firstElementChild.replaceChildren(...heading(name));
      this.figures.set(name, figure);
    }
    const wanted = names.map((name) => this.figures.get(name));
    if (wanted.some((figure, i) => this.host.children[i] !== figure) || this.host.children.length !== wanted.length) this.host.replaceChildren(...wanted);
    return wanted;
  }
}

const QUANTILES = [["p50_ms", "p50", 0], ["p95_ms", "p95", 1], ["p99_ms", "p99", 3]];

/** Creates the drawing of run times: percentiles of each stream, those with most tasks first. */
export function latencies({ words: filter = () => [], only, of }) {
  return (frame) => {
    const figures = new Figures(frame);
    let most = STREAMS;
    const more = document.createElement("button");
    more.type = "button";
    more.className = "quiet";
    more.hidden = true;
    more.addEventListener("click", () => {
      most += 2 * STREAMS;
      frame.redraw();
    });
    frame.legend.replaceWith(more);
    return {
      draw([answer], range) {
        const streams = Object.entries(answer.total)
          .filter(([stream]) => (only === undefined ? fits(stream, filter()) : stream === only))
          .sort(([a, x], [b, y]) => y.count - x.count || (a < b ? -1 : 1));
        const shown = streams.slice(0, most);
        more.hidden = shown.length === streams.length;
        more.textContent = `Show ${Math.min(2 * STREAMS, streams.length - shown.length)} more of ${streams.length} streams`;
        const told = (figure) => (figure === null || figure === undefined ? MISSING : took(figure));
        const heading = (name) => {
          const total = answer.total[name];
          const link = words(visible(name), "a");
          link.href = pageOf("streams", name);
          link.title = visible(name);
          const note = words(`${short(total.count)} tasks`);
          note.className = "count";
          note.title = `whole time range: mean ${told(total.mean_ms)}, maximum ${told(total.max_ms)}`;
          const inexact = words("≈");
          inexact.className = "inexact";
          inexact.title = "Includes data recorded by an older monitor. Its percentiles are averages of percentiles, not percentiles of the tasks.";
          return only === undefined ? [link, note, ...(total.exact ? [] : [inexact])] : [note, ...(total.exact ? [] : [inexact, words("includes averaged percentiles from an older monitor")])];
        };
        figures.arrange(shown.map(([name]) => name), heading).forEach((figure, i) => {
          const [name, total] = shown[i];
          const given = answer.series[name] ?? [];
          const times = given.map(({ ts }) => ts);
          // With short buckets every row is a point; a stream that is idle for longer has a gap.
          const apart = Math.max(100, 1.5 * answer.bucket_seconds);
          const data = [[], ...QUANTILES.map(() => [])];
          given.forEach((point, j) => {
            if (j > 0 && times[j] - times[j - 1] > apart) {
              data[0].push((times[j] + times[j - 1]) / 2);
              QUANTILES.forEach((_, q) => data[q + 1].push(null));
            }
            data[0].push(point.ts);
            QUANTILES.forEach(([field], q) => data[q + 1].push(point[field]));
          });
          const values = figure.lastElementChild;
          const count = figure.querySelector("figcaption .count");
          const tell = (from, when) => {
            values.replaceChildren(...QUANTILES.map(([field, called, place]) => {
              const one = words(`${called} ${told(from[field])}`);
              one.className = `q${place}`;
              return one;
            }));
            count.textContent = when;
          };
          const chart = plot(figure.children[1], {
            data, range, format: took, top: niceTime, ticks: 2, of: of === undefined ? name : of,
            series: QUANTILES.map(([, , place]) => ({ stroke: look(place).stroke, width: place === 0 ? 1.8 : 1.2, points, spanGaps: false })),
            told: (at) => {
              const point = at === null ? null : given.find(({ ts }) => ts === data[0][at]);
              if (at === null) tell(total, `${short(total.count)} tasks`);
              else tell(point ?? {}, `${moment(data[0][at], range)}, ${point?.count ?? 0} tasks`);
            },
          });
          chart.setCursor({ left: -10, top: -10 });
        });
        return streams.length === 0 ? "No tasks finished in this time range." : "";
      },
    };
  };
}

/** Charts of the servers: heading, series, and format. */
const SERVERS = [
  ["Redis memory", [["redis:used_memory_bytes", "used"]], bytes],
  ["Redis clients", [["redis:connected_clients", "clients"]], short],
  ["Redis commands per second", [["redis:ops_per_sec", "per second"]], short],
  ["Postgres connections", [["pg:connection_count", "connections"]], short],
  ["Postgres size", [["pg:db_size_bytes", "database"], ["pg:wal_size_bytes", "WAL"]], bytes],
  ["Postgres disk", [["pg:disk_used_bytes", "used"], ["pg:disk_capacity_bytes", "capacity"]], bytes],
];

/** Creates the drawing of the servers' charts. */
export function servers() {
  return (frame) => {
    const figures = new Figures(frame);
    return {
      draw([answer], range) {
        const times = timesOf(answer);
        const known = SERVERS.filter(([, lines]) => lines.some(([key]) => answer.series[key]?.length));
        figures.arrange(known.map(([title]) => title), (title) => [words(title)]).forEach((figure, i) => {
          const [, lines, format] = known[i];
          const there = lines.filter(([key]) => answer.series[key]?.length);
          const data = [times];
          const series = [];
          const bands = [];
          there.forEach(([key], j) => {
            const { stroke } = look(j === 0 ? 0 : 1);
            data.push(column(answer.series[key], answer, times, 1), column(answer.series[key], answer, times, 3));
            series.push({ stroke, width: 1.6, points, spanGaps: false }, { stroke: faint(stroke, 0.4), width: 1, points: { show: false }, spanGaps: false });
            bands.push({ series: [2 * j + 2, 2 * j + 1], fill: faint(stroke, 0.16) });
          });
          const chart = plot(figure.children[1], {
            data, series, bands, range, format, top: (peak) => niceTop(peak, format === bytes ? 1000 : 1), ticks: 2, of: null,
            told: (at) => {
              const last = answer.series[there[0][0]].at(-1)[0];
              figure.lastElementChild.replaceChildren(...there.map(([key, called], j) => {
                const value = at === null ? answer.series[key].at(-1)[1] : data[2 * j + 1][at];
                const one = words(`${called} ${(value ?? null) === null ? MISSING : format(value)}`);
                one.className = `q${j}`;
                return one;
              }), words(at === null ? `at ${moment(last, range)}` : `at ${moment(times[at], range)}`));
            },
          });
          chart.setCursor({ left: -10, top: -10 });
        });
        return known.length === 0 ? "No data about Redis and Postgres in this time range." : "";
      },
    };
  };
}
