// A chart of values over time, with its table.

import { useEffect, useRef } from "preact/hooks";
import uPlot from "uplot";
import "uplot/dist/uPlot.min.css";
import { number, time } from "../lib/format";

/** The height of the plot, in px. */
const HEIGHT = 180;

export interface Series {
  label: string;
  /** A custom property with its color: `--completed`. */
  color: string;
  values: (number | null)[];
}

export function Chart({ label, starts, series, format = number }: {
  label: string;
  /** The start of each bucket, RFC 3339. */
  starts: string[];
  series: Series[];
  format?: (value: number) => string;
}) {
  const place = useRef<HTMLDivElement>(null);
  const plot = useRef<uPlot | null>(null);
  const data = [starts.map((start) => Date.parse(start) / 1_000), ...series.map(({ values }) => values)] as uPlot.AlignedData;
  // What needs another plot; new values are shown in place.
  const lines = JSON.stringify([series.map(({ label, color }) => [label, color]), starts.length < 3]);
  useEffect(() => {
    const element = place.current;
    if (!element) return;
    const resolved = document.createElement("span");
    element.append(resolved);
    // A canvas knows no custom properties and no light-dark().
    const paint = (name: string) => {
      resolved.style.color = `var(${name})`;
      return getComputedStyle(resolved).color;
    };
    const axis = { stroke: paint("--faint"), grid: { stroke: paint("--line"), width: 1 }, ticks: { show: false } };
    const made = new uPlot(
      {
        width: element.clientWidth,
        height: HEIGHT,
        cursor: { y: false },
        legend: { live: false },
        scales: { y: { range: (_, min, max) => [Math.min(0, min), max > 0 ? max * 1.05 : 1] } },
        axes: [{ ...axis, values: (_, ticks) => ticks.map((tick) => tickText(tick, ticks)) }, { ...axis, size: 64, values: (_, ticks) => ticks.map((tick) => format(tick)) }],
        series: [
          {},
          ...series.map((one) => ({
            label: one.label,
            stroke: paint(one.color),
            width: 2,
            points: { show: starts.length < 3 },
          })),
        ],
      },
      data,
      element,
    );
    plot.current = made;
    resolved.remove();
    const resize = new ResizeObserver(() => made.setSize({ width: element.clientWidth, height: HEIGHT }));
    resize.observe(element);
    return () => {
      plot.current = null;
      resize.disconnect();
      made.destroy();
    };
  }, [lines]);
  useEffect(() => plot.current?.setData(data), [JSON.stringify(data)]);
  return (
    <figure class="chart">
      <div ref={place} role="img" aria-label={label} />
      <details>
        <summary>Table: {label}</summary>
        <div class="table-scroll" tabIndex={0} role="region" aria-label={label}>
          <table>
            <caption>{label}</caption>
            <thead>
              <tr>
                <th scope="col">Start</th>
                {series.map((one) => (
                  <th key={one.label} scope="col" class="number">
                    {one.label}
                  </th>
                ))}
              </tr>
            </thead>
            <tbody>
              {starts.map((start, n) => (
                <tr key={start}>
                  <td>{time(start)}</td>
                  {series.map((one) => (
                    <td key={one.label} class="number">
                      {one.values[n] === null || one.values[n] === undefined ? "–" : format(one.values[n])}
                    </td>
                  ))}
                </tr>
              ))}
            </tbody>
          </table>
        </div>
      </details>
    </figure>
  );
}

/** The date at midnight and for long ranges, else the time of day. */
function tickText(tick: number, ticks: number[]): string {
  const at = new Date(tick * 1_000);
  const step = (ticks[1] ?? tick) - (ticks[0] ?? tick);
  const isMidnight = at.getHours() === 0 && at.getMinutes() === 0;
  return step >= 86_400 || isMidnight ? monthAndDay.format(at) : hourAndMinute.format(at);
}

const monthAndDay = new Intl.DateTimeFormat("en-CA", { month: "2-digit", day: "2-digit" });
const hourAndMinute = new Intl.DateTimeFormat("en-CA", { hour: "2-digit", minute: "2-digit", hour12: false });

/** A line without axes, for a cell. */
export function Sparkline({ values, label }: { values: number[]; label: string }) {
  const max = Math.max(1, ...values);
  const width = 96;
  const step = width / Math.max(1, values.length);
  return (
    <svg class="sparkline" width={width} height={20} role="img" aria-label={label}>
      {values.map((value, n) => (
        <rect
          key={n}
          x={n * step}
          y={20 - (value / max) * 20}
          width={Math.max(1, step - 1)}
          height={(value / max) * 20}
        />
      ))}
    </svg>
  );
}
