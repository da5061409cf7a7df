// The model's attention in this image, as the page's views ask for it.

import { Coded, float32 } from "./numbers.js";
import { discard, fuse, propagate } from "./rollout.js";

export class Attention {
  constructor({ grid, prefix, storage, reads, pooled, blocks }) {
    this.grid = grid;
    this.prefix = prefix.length;
    this.patches = grid[0] * grid[1];
    this.tokens = this.prefix + this.patches;
    this.fusions = Object.keys(reads); // in the order of what is fused
    this.reads = Object.fromEntries(this.fusions.map((how) => [how, float32(reads[how])]));
    this.pooled = pooled; // by attention, all of which is part of the map
    this.blocks = blocks.map((branches) => branches.map(({ heads, fused }) => ({
      heads: heads && new Coded(heads, storage.heads, this.tokens),
      fused: fused && new Coded(fused, storage.fused, this.tokens),
    })));
    this.made = new Map(); // what was fused before
  }

  // How many heads a block has; 0 where they are not kept.
  heads(block) {
    return this.blocks[block].reduce((count, { heads }) => count + (heads?.count ?? 0), 0);
  }

  // (n * n) of one head; the heads of parallel branches follow one another.
  head(block, number) {
    for (const { heads } of this.blocks[block]) {
      if (number < heads.count) return heads.matrix(number);
      number -= heads.count;
    }
  }

  // (n * n), the heads fused; what parallel branches add is summed.
  fused(block, fusion) {
    const key = `${block} ${fusion}`;
    if (!this.made.has(key)) {
      const [first, ...others] = this.blocks[block].map((branch) => this.#fusedBranch(branch, fusion));
      for (const other of others) other.forEach((value, place) => { first[place] += value; });
      this.made.set(key, first);
    }
    return this.made.get(key);
  }

  #fusedBranch({ heads, fused }, fusion) {
    if (fused) return fused.matrix(this.fusions.indexOf(fusion));
    return fuse(Array.from({ length: heads.count }, (_, number) => heads.matrix(number)), fusion);
  }

  // One token as a row; null is what the classifier reads.
  row(token, fusion) {
    if (token === null) return this.reads[fusion];
    const row = new Float32Array(this.tokens);
    row[token] = 1;
    return row;
  }

  // (n): what a token attends to, or (from) how much each token attends to it.
  ofToken(token, { block, head, fusion, from }) {
    const matrix = head === null ? this.fused(block, fusion) : this.head(block, head);
    const row = this.row(token, fusion);
    return Float32Array.from(row, (_, place) => {
      let value = 0;
      row.forEach((weight, query) => {
        if (weight) value += weight * matrix[from ? place * this.tokens + query : query * this.tokens + place];
      });
      return value;
    });
  }

  // (n): how much of each token reaches this one through the blocks. Of what the classifier reads,
  // a token's own share is no part.
  rollout(token, { fusion, ratio, start }) {
    const key = `${fusion} ${ratio}`;
    if (this.discarded?.key !== key) {
      const matrices = this.blocks.map((_, block) =>
        discard(this.fused(block, fusion), this.tokens, this.prefix, ratio));
      this.discarded = { key, matrices };
    }
    const own = token !== null || this.pooled;
    return propagate(this.discarded.matrices.slice(start), this.row(token, fusion), own);
  }
}
