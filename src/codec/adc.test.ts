import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { compressAdc } from '../../test/kit/adc.js';
import { compressible } from '../../test/kit/compressible.js';
import { runHere } from '../../test/kit/run-compute.js';
import { BlockError } from '../base/error.js';
import { expandAdc } from './adc.js';

test('literal bytes and copies of both lengths, also of what a copy has just made', () => {
  const input = Buffer.of(0x82, 0x61, 0x62, 0x63, 0x08, 0x02, 0x43, 0x00, 0x00);
  const { value, output } = runHere(expandAdc, input, 100, undefined);
  assert.equal(output.toString('latin1', 0, value), 'abcabcabbbbbbbb');
});

test('what was compressed comes back; less of it, or less room, is corrupt', () => {
  fc.assert(
    fc.property(compressible(20_000), fc.nat(), (bytes, cut) => {
      const stream = compressAdc(bytes);
      const { value, output } = runHere(expandAdc, stream, bytes.length, undefined);
      assert.equal(value, bytes.length);
      assert.ok(output.equals(bytes));
      assert.throws(() => runHere(expandAdc, stream, bytes.length - 1, undefined), { kind: 'corrupt' });
      try {
        assert.ok(
          runHere(expandAdc, stream.subarray(0, cut % stream.length), bytes.length, undefined).value <
            bytes.length,
        );
      } catch (error) {
        assert.ok(error instanceof BlockError && error.kind === 'corrupt');
      }
    }),
    { numRuns: 60 },
  );
});

test('a copy of what is not there is corrupt', () => {
  assert.throws(() => runHere(expandAdc, Buffer.of(0x80, 1, 0x00, 0x01), 100, undefined), {
    kind: 'corrupt',
  });
});
