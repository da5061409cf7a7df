// The guided tour: each step shows something, asks, and answers with this very picture's figures.

import { correlation, spread } from "./numbers.js";

const NEAR = 2; // patches
const MANY = 0.9; // a discard ratio

// Steps: what the page shows before and after the answer; the facts that texts mention; and the
// place of the right choice.
export function stepsOf(data, attention, look) {
  const last = attention.blocks.length - 1;
  const { grid: [rows, columns], prefix, patches, tokens } = attention;
  const atPatches = (values) => values.slice(prefix);
  const middle = prefix + Math.floor(rows / 2) * columns + Math.floor(columns / 2);
  const reads = (block, head = null) =>
    atPatches(attention.ofToken(null, { block, head, fusion: "mean", from: false }));
  const facts = { rows, columns, patches, tokens, prefix };
  const brightest = (values) => values.indexOf(Math.max(...values));
  const own = data.maps.filter((map) => !map.category);
  const ofCategory = data.maps.filter((map) => map.category);

  return [
    {
      name: "patches",
      before: { view: "attention", blend: 0, grid: true },
      after: { blend: 0 },
      facts: () => facts,
      right: () => (prefix ? 1 : 0),
    },
    {
      name: "position",
      before: { view: "attention", token: middle, block: 0, head: null, fusion: "mean", from: false, blend: 0 },
      after: { blend: 65 },
      facts() {
        const row = atPatches(attention.ofToken(middle, { block: 0, head: null, fusion: "mean", from: false }));
        const [y, x] = [Math.floor((middle - prefix) / columns), (middle - prefix) % columns];
        let [near, count, whole] = [0, 0, 0];
        row.forEach((value, place) => {
          whole += value;
          const far = Math.max(Math.abs(Math.floor(place / columns) - y), Math.abs((place % columns) - x));
          if (far > NEAR) return;
          near += value;
          count += 1;
        });
        return { share: near / whole, near: look.percent(near / whole), even: look.percent(count / patches) };
      },
      right: ({ share }) => (share > 0.5 ? 0 : 1),
    },
    {
      name: "reads",
      before: { view: "attention", token: null, block: last, head: null, fusion: "mean", from: false, blend: 0 },
      after: { blend: 65 },
      facts: () => ({ classToken: data.prefix.includes("class"), readout: data.readout }),
      right: () => 1,
    },
    {
      name: "head",
      before: { view: "attention", token: null, block: last, head: attention.heads(last) ? 0 : null, from: false, blend: 65 },
      after: { head: attention.heads(last) > 1 ? 1 : null },
      facts() {
        const all = Array.from({ length: attention.heads(last) }, (_, head) => brightest(reads(last, head)));
        return { others: Math.max(0, all.length - 1), agree: all.slice(1).filter((place) => place === all[0]).length };
      },
      right: ({ others, agree }) => (agree === others ? 0 : agree ? 1 : 2),
    },
    {
      name: "blocks",
      before: { view: "attention", token: null, block: 0, head: null, fusion: "mean", from: false, blend: 65 },
      after: { block: last },
      facts() {
        const [first, end] = [0, last].map((block) => spread(reads(block)));
        return { blocks: last + 1, first: look.count(first), last: look.count(end), earlier: first > end };
      },
      right: ({ earlier }) => (earlier ? 0 : 1),
    },
    {
      name: "rollout",
      before: { view: "rollout", token: null, fusion: "mean", ratio: 0, start: 0, blend: 65 },
      after: { ratio: MANY },
      facts() {
        const [all, few] = [0, MANY].map((ratio) =>
          spread(atPatches(attention.rollout(null, { fusion: "mean", ratio, start: 0 }))));
        return { all: look.count(all), few: look.count(few), fewer: few < all };
      },
      right: ({ fewer }) => (fewer ? 1 : 0),
    },
    {
      name: "category",
      before: data.maps.length ? { view: "maps", map: data.maps.indexOf(own[0] ?? data.maps[0]), blend: 65 } : { view: "rollout" },
      after: ofCategory.length ? { map: data.maps.indexOf(ofCategory[0]) } : {},
      facts() {
        const [first, second] = ofCategory.filter((map) => map.method === ofCategory[0]?.method);
        if (!second) return { first: first && look.category(first.category), second: null, alike: null };
        return {
          first: look.category(first.category),
          second: look.category(second.category),
          method: look.method(first),
          alike: look.decimal(correlation(first.values, second.values)),
        };
      },
      right: () => 0,
    },
    {
      name: "limits",
      before: data.maps.length ? { view: "maps", blend: 65 } : {},
      after: {},
      facts() {
        const first = ofCategory[0]?.category.index;
        const measured = data.maps
          .filter((map) => map.faithfulness !== null && (!map.category || map.category.index === first))
          .sort((one, other) => other.faithfulness - one.faithfulness);
        if (measured.length < 2) return { best: null };
        const [best, worst] = [measured[0], measured.at(-1)];
        return {
          best: data.maps.indexOf(best),
          bestName: look.method(best), bestValue: look.decimal(best.faithfulness),
          worstName: look.method(worst), worst: look.decimal(worst.faithfulness),
        };
      },
      right: () => 1,
    },
  ];
}
