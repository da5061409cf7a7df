// Attention rollout as the tool calculates it (vit_rollout.py; Abnar & Zuidema 2020, equation 1).
// Matrices are (n, n) in rows: queries are rows, keys are columns, prefix tokens come first.

// The mean, maximum or minimum over heads.
export function fuse(heads, fusion) {
  const fused = Float32Array.from(heads[0]);
  for (const head of heads.slice(1))
    for (let place = 0; place < fused.length; place++) {
      if (fusion === "mean") fused[place] += head[place];
      else if (fusion === "max" ? head[place] > fused[place] : head[place] < fused[place])
        fused[place] = head[place];
    }
  if (fusion === "mean") fused.forEach((value, place) => { fused[place] = value / heads.length; });
  return fused;
}

// A copy in which the weakest entries of the patches' columns, this share of them, are 0.
export function discard(matrix, tokens, prefix, ratio) {
  const kept = Float32Array.from(matrix);
  const columns = tokens - prefix;
  const rank = Math.trunc(ratio * tokens * columns);
  if (!rank) return kept;
  const entries = new Float32Array(tokens * columns);
  for (let row = 0; row < tokens; row++)
    entries.set(matrix.subarray(row * tokens + prefix, (row + 1) * tokens), row * columns);
  const threshold = select(entries, rank);
  for (let row = 0; row < tokens; row++)
    for (let column = prefix; column < tokens; column++)
      if (kept[row * tokens + column] < threshold) kept[row * tokens + column] = 0;
  return kept;
}

// The value at this place, were they sorted; their order changes (Hoare 1961).
export function select(values, rank) {
  let [first, last] = [0, values.length - 1];
  while (first < last) {
    const pivot = values[(first + last) >> 1];
    let [low, high] = [first, last];
    while (low <= high) {
      while (values[low] < pivot) low++;
      while (values[high] > pivot) high--;
      if (low > high) break;
      [values[low], values[high]] = [values[high], values[low]];
      low++;
      high--;
    }
    if (rank <= high) last = high;
    else if (rank >= low) first = low;
    else break;
  }
  return values[rank];
}

// row A~_L ... A~_1 with A~ = rownorm(matrix + I), the last block first. Without `own`, less what
// stays at each token by its residual connections alone.
export function propagate(matrices, row, own = true) {
  const tokens = row.length;
  let [stayed, moved] = [Float64Array.from(row), new Float64Array(tokens)];
  for (const matrix of [...matrices].reverse()) {
    const next = new Float64Array(tokens);
    for (let query = 0; query < tokens; query++) {
      const reached = stayed[query] + moved[query];
      if (!reached) continue;
      const start = query * tokens;
      let total = 1;
      for (let key = 0; key < tokens; key++) total += matrix[start + key];
      const weight = reached / total;
      for (let key = 0; key < tokens; key++) next[key] += weight * matrix[start + key];
      next[query] += moved[query] / total;
      stayed[query] /= total;
    }
    moved = next;
  }
  return own ? moved.map((value, place) => stayed[place] + value) : moved;
}
