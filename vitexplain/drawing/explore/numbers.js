// Numbers in the page's data: base64 of little-endian arrays.

export const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));

export const float32 = (text) => new Float32Array(bytes(text).buffer);

const codes = (text, bits) => (bits === 16 ? new Uint16Array(bytes(text).buffer) : bytes(text));

// Several (n, n) matrices in few bits: entry = scale of its row * (code / largest code)^2.
export class Coded {
  constructor({ codes: text, scales }, bits, tokens) {
    this.codes = codes(text, bits);
    this.scales = float32(scales);
    this.tokens = tokens;
    this.squares = Float64Array.from({ length: 2 ** bits }, (_, code) => (code / (2 ** bits - 1)) ** 2);
  }

  get count() {
    return this.scales.length / this.tokens;
  }

  // (n * n) of one of them
  matrix(number) {
    const { tokens, squares, scales } = this;
    const values = new Float32Array(tokens * tokens);
    for (let row = 0; row < tokens; row++) {
      const scale = scales[number * tokens + row];
      const start = number * tokens * tokens + row * tokens;
      for (let column = 0; column < tokens; column++)
        values[row * tokens + column] = scale * squares[this.codes[start + column]];
    }
    return values;
  }
}

export const largest = (values) => values.reduce((most, value) => Math.max(most, value), -Infinity);
export const sum = (values) => values.reduce((total, value) => total + value, 0);

// How many patches a map is spread over: the exponential of its entropy (1: one patch has it all).
export function spread(values) {
  const total = sum(values);
  if (!(total > 0)) return 0;
  const entropy = sum(Array.from(values, (value) => (value > 0 ? -(value / total) * Math.log(value / total) : 0)));
  return Math.exp(entropy);
}

// Pearson's correlation of two maps; NaN if one of them is constant.
export function correlation(one, other) {
  const [a, b] = [one, other].map((values) => {
    const mean = sum(values) / values.length;
    return Array.from(values, (value) => value - mean);
  });
  const dot = (x, y) => sum(x.map((value, place) => value * y[place]));
  return dot(a, b) / Math.sqrt(dot(a, a) * dot(b, b));
}
