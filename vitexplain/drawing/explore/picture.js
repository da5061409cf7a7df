// The picture with a map over it, and its colour bar.

// Draws values (rows * columns) into a canvas of as many pixels. colours: 256 * 3 bytes; of signed
// maps also 256 weights, which fade what says little.
export function drawMap(canvas, values, [rows, columns], { low, high, signed }, { colours, sides }) {
  Object.assign(canvas, { width: columns, height: rows });
  const context = canvas.getContext("2d");
  const image = context.createImageData(columns, rows);
  values.forEach((value, place) => {
    const level = levelOf(value, low, high);
    const table = signed ? sides.colours : colours;
    image.data.set(table.subarray(3 * level, 3 * level + 3), 4 * place);
    image.data[4 * place + 3] = signed ? 255 * sides.weights[level] : 255;
  });
  context.putImageData(image, 0, 0);
}

// The place of a value in a table of 256 colours.
export const levelOf = (value, low, high) =>
  Math.round(255 * Math.min(1, Math.max(0, (value - low) / (high - low || 1))));

// One colour for each category in `order`, grey for all others.
export function drawVotes(canvas, votes, [rows, columns], order) {
  Object.assign(canvas, { width: columns, height: rows });
  const context = canvas.getContext("2d");
  votes.forEach((category, place) => {
    context.fillStyle = VOTES[order.indexOf(category)] ?? OTHERS;
    context.fillRect(place % columns, Math.floor(place / columns), 1, 1);
  });
}

// told apart with any kind of colour vision (Okabe & Ito 2008)
export const VOTES = ["#e69f00", "#56b4e9", "#009e73", "#cc79a7", "#0072b2"];
export const OTHERS = "#8a8a8a";

export function colourBar(canvas, signed, tables) {
  drawMap(canvas, Array.from({ length: 256 }, (_, level) => level), [1, 256],
    { low: 0, high: 255, signed }, tables);
}
