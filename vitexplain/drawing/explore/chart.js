// The prediction after each block, as bars.

const SVG = "http://www.w3.org/2000/svg";
const [WIDTH, HEIGHT, ROOM] = [480, 72, 16]; // with room for a line of numbers above and below

function shape(name, attributes, text = "") {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.textContent = text;
  return element;
}

// A bar for each block: the probability of its most likely category, green where that is the answer.
export function drawPredictions(svg, blocks, chosen, percent) {
  svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT + 2 * ROOM}`);
  const most = Math.max(...blocks.map(({ top: [first] }) => first.probability));
  const answer = blocks.at(-1).top[0].index;
  const step = WIDTH / blocks.length;
  svg.replaceChildren(...blocks.flatMap(({ block, top: [first] }, place) => {
    const high = Math.max(2, (first.probability / most) * HEIGHT);
    const right = first.index === answer ? "answer" : "other";
    const bar = shape("rect", {
      class: `${right}${block === chosen ? " chosen" : ""}`,
      x: (place + 0.15) * step, width: 0.7 * step, y: ROOM + HEIGHT - high, height: high,
    });
    const middle = (place + 0.5) * step;
    const label = (y, text) => shape("text", { x: middle, y, "text-anchor": "middle" }, text);
    const below = label(HEIGHT + 2 * ROOM - 3, block + 1);
    return block === chosen ? [bar, below, label(ROOM + HEIGHT - high - 4, percent(first.probability))] : [bar, below];
  }));
}
