// BM25 as rdl_core/data/retrieval.py asks bm25s for it (Lucene's form, k1 = 1.2, b = 0.75), with the
// same words; tests/test_live.py compares rankings and scores with Python's.

import { stem } from "./stem.js";

const K1 = 1.2;
const B = 0.75;
const WORD = /[\p{L}\p{N}_]{2,}/gu; // Python's \w\w+

/** An index of texts; stop words are left out of texts and queries. */
export class BM25 {
  constructor(texts, stopWords) {
    this.stopWords = new Set(stopWords);
    this.stems = new Map();
    this.postings = new Map(); // stem -> [row, count, row, count, ...]
    this.lengths = texts.map((text, row) => this.#add(text, row));
    this.average = this.lengths.reduce((sum, length) => sum + length, 0) / texts.length;
  }

  /** The best `depth` rows as { row, score }, best first; without those that share no word. */
  search(query, depth) {
    const scores = new Map();
    for (const word of this.#words(query)) {
      const rows = this.postings.get(word) ?? [];
      const n = rows.length / 2;
      const idf = Math.log(1 + (this.lengths.length - n + 0.5) / (n + 0.5));
      for (let i = 0; i < rows.length; i += 2) {
        const [row, count] = [rows[i], rows[i + 1]];
        const norm = K1 * (1 - B + (B * this.lengths[row]) / this.average);
        // bm25s keeps and adds single-precision numbers; doing so here, equal scores stay equal.
        const score = Math.fround((idf * count) / (norm + count));
        scores.set(row, Math.fround((scores.get(row) ?? 0) + score));
      }
    }
    return [...scores]
      .map(([row, score]) => ({ row, score }))
      .sort((one, other) => other.score - one.score || one.row - other.row)
      .slice(0, depth);
  }

  #add(text, row) {
    const words = this.#words(text);
    for (const word of words) {
      const rows = this.postings.get(word);
      if (!rows) this.postings.set(word, [row, 1]);
      else if (rows.at(-2) === row) rows[rows.length - 1] += 1;
      else rows.push(row, 1);
    }
    return words.length;
  }

  #words(text) {
    const found = text.toLowerCase().match(WORD) ?? [];
    return found.filter((word) => !this.stopWords.has(word)).map((word) => {
      if (!this.stems.has(word)) this.stems.set(word, stem(word));
      return this.stems.get(word);
    });
  }
}
