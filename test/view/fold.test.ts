import assert from 'node:assert/strict';
import { test } from 'node:test';
import { buildView } from '../../src/view/build.js';
import { foldDeepChains } from '../../src/view/fold.js';
import type { View } from '../../src/view/model.js';
import { manyDisks } from '../peers/fake-monitor.js';

/** A chain of 20 images, one of which is called otherwise. */
function chainWith(name: string): View {
  const answers = JSON.stringify(manyDisks([20])).replaceAll('"n0-5"', JSON.stringify(name));
  return buildView(JSON.parse(answers) as Parameters<typeof buildView>[0]);
}

for (const name of ['fold:x', 'fold:n0-19 n0-3', 'fold:n0-19 n0-3+', 'n0-5'])
  test(`a node that is called '${name}' is a node, and what stands for those that are not drawn is another`, () => {
    const view = chainWith(name);
    const none = new Set<string>();
    const folded = foldDeepChains(view, { unfolded: none, kept: [] });
    const ids = folded.images.map(({ id }) => id);
    assert.equal(new Set(ids).size, ids.length);
    const stand = folded.images.filter(({ foldOf }) => foldOf !== undefined);
    assert.deepEqual(
      stand.map(({ label, foldOf }) => [label, foldOf]),
      [['11 more layers', 'n0-19']],
    );
    assert.ok(!view.images.some(({ id }) => id === stand[0]?.id));
    const kept = foldDeepChains(view, { unfolded: none, kept: [name] });
    assert.equal(kept.images.find(({ id }) => id === name)?.foldOf, undefined);
    assert.deepEqual(foldDeepChains(view, { unfolded: new Set(['n0-19']), kept: [] }), view);
  });
