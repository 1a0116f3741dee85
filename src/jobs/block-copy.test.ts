import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { BlockBackend } from '../block/backend.js';
import type { ChainStatus } from '../block/chain-status.js';
import { Mover } from './block-copy.js';
import type { CopyTurn } from '../block/copy-turn.js';
import type { Job } from './job.js';

const UNIT = 4096;
const END = 5 * UNIT;

/** A side of a copy whose stretches end where `ends` says, zero or data in turns; and what is zeroed in it. */
function sideOf(ends: readonly number[], startsZero: boolean): { backend: BlockBackend; zeroed: string[] } {
  const zeroed: string[] = [];
  const statusThroughChain = (offset: number, lengthBytes: number): Partial<ChainStatus> => {
    const index = ends.findIndex((end) => end > offset);
    const zero = index % 2 === (startsZero ? 0 : 1);
    const length = Math.min(lengthBytes, (ends[index] ?? END) - offset);
    return { lengthBytes: length, zero, data: !zero, allocated: true, depth: 0 };
  };
  const writeZeroes = async (offset: number, lengthBytes: number): Promise<void> =>
    void zeroed.push(`${offset}+${lengthBytes}`);
  const during = async (work: () => unknown): Promise<unknown> => work();
  const skipFilters = (): unknown => ({ driver: { options: { backing: false } } });
  return {
    backend: {
      node: { instance: {}, statusThroughChain, skipFilters },
      during,
      writeZeroes,
    } as unknown as BlockBackend,
    zeroed,
  };
}

test('zeroes are copied in whole units, wherever the stretches of the target end', async () => {
  const turn = { doneWith: () => undefined } as unknown as CopyTurn;
  for (const end of [512, UNIT - 512, UNIT, UNIT + 512, 3 * UNIT + 512]) {
    const target = sideOf([end, end + 512, END], false);
    const mover = new Mover({
      job: {} as Job,
      source: sideOf([END], true).backend,
      target: target.backend,
      unmap: true,
      skipKnownZeroes: true,
    });
    const parts: number[] = [];
    for (let at = 0; at < END; at += parts.at(-1) ?? END)
      parts.push(await mover.copyFirst(turn, { offset: at, lengthBytes: END - at }, { unit: UNIT }));
    for (const part of parts) assert.equal(part % UNIT, 0, `data up to ${end}: parts ${parts.join(' ')}`);
    // All that the target held is zeroed, and nothing that read as zeroes.
    const zeroedBytes = target.zeroed.reduce((sum, range) => sum + Number(range.split('+')[1]), 0);
    assert.equal(zeroedBytes, end + (END - end - 512));
  }
});
