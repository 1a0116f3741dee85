import assert from 'node:assert/strict';
import { test } from 'node:test';
import { differenceOf, imagesDiffer } from './img-comparable.js';
import { DrawnLines } from './img-drawn-lines.js';
import { MORE_IMAGES } from './img-grammar.js';
import { IMAGES, skip } from './tool-table.js';
import { ToolPair } from './tool-pair.js';

/**
 * Random command lines of qemu-img's subcommands, sensible and not, given to either side's tool on copies of the same
 * images: exit status, what is printed, and the images in the end are alike. IMG_SEED=7 is one run again, IMG_PAIRS how many,
 * IMG_STEPS lines in each, IMG_ONLY=convert,dd of these commands alone.
 */
const SEEDS =
  process.env['IMG_SEED'] === undefined
    ? Array.from({ length: Number(process.env['IMG_PAIRS'] ?? 2) }, (_, i) => 1 + i)
    : [Number(process.env['IMG_SEED'])];
const STEPS = Number(process.env['IMG_STEPS'] ?? 30);

for (const seed of SEEDS)
  test(`random command lines are answered alike by either tool, seed ${seed}`, { skip }, async (context) => {
    const pair = new ToolPair(context);
    pair.prepareOnce(...IMAGES, ...MORE_IMAGES);
    const drawn = new DrawnLines(seed);
    const lines: string[] = [];
    const told = (differ: string): string => `seed ${seed}:\n${lines.join('\n')}\n${differ}`;
    while (lines.length < STEPS) {
      const line = drawn.next();
      lines.push(line);
      const differ = await differenceOf(pair, line);
      assert.equal(differ, '', told(differ));
    }
    const differ = imagesDiffer(pair).join('\n');
    assert.equal(differ, '', told(differ));
  });
