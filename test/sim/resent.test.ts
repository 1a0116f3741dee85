import assert from 'node:assert/strict';
import { test } from 'node:test';
import { LAYERS_KINDS, measureResentLayers } from './resent-layers.js';
import { measureResent, RESENT_KINDS } from './resent.js';

const MiB = 1024 * 1024;

for (const kind of RESENT_KINDS)
  test(`a ${kind} that is cut off sends little again: of 4 GiB and 100 cuts, at most 5%`, async () => {
    const { againBytes, cuts } = await measureResent(kind, 1, 128, 10);
    // What is in flight, what is not flushed, and what lies around a guest's change.
    assert.ok(againBytes <= cuts * 2.5 * MiB, `${againBytes} bytes in ${cuts} cuts`);
  });

for (const kind of LAYERS_KINDS)
  test(`a ${kind} within a chain that is cut off sends little again: of 4 GiB and 100 cuts, at most 10%`, async () => {
    const { againBytes, cuts } = await measureResentLayers(kind, 1, 128, 5);
    assert.ok(againBytes <= cuts * 4.1 * MiB, `${againBytes} bytes in ${cuts} cuts`);
  });
