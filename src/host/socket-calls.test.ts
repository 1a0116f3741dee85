import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import type { Koffi } from './koffi.js';
import type { Library } from './libc.js';
import { NativeCalls } from './native-calls.js';
import { SocketCalls } from './socket-calls.js';

/** Collects what nobody uses, and uses its memory anew. */
function collect(): void {
  setFlagsFromString('--expose-gc');
  (runInNewContext('gc') as () => void)();
  const arrays = Array.from({ length: 1000 }, () => new BigUint64Array(new ArrayBuffer(16)).fill(1n));
  assert.equal(arrays.length, 1000);
}

test('what a message is made of is there until it is sent, however often memory is collected meanwhile', () => {
  const real = new NativeCalls();
  const { koffi } = real.library;
  const sent: string[] = [];
  let collects = false;
  /** Reads a struct msghdr as the kernel does. */
  const sendmsg = (_fd: number, header: BigUint64Array): number => {
    if (collects) collect();
    const at = (address: bigint, lengthBytes: number): Buffer =>
      Buffer.from(koffi.view(address, lengthBytes));
    const piece = at(header[2] ?? 0n, 16);
    const lengthBytes = Number(piece.readBigUInt64LE(8));
    // Garbage is no address to look at.
    if (lengthBytes > 100) return -1;
    sent.push(at(piece.readBigUInt64LE(0), lengthBytes).toString());
    sent.push(`fd ${at(header[4] ?? 0n, 20).readInt32LE(16)}`);
    return lengthBytes;
  };
  const address: Koffi['address'] = (value) => {
    const found = koffi.address(value);
    if (collects) collect();
    return found;
  };
  const library = { ...real.library, sendmsg, koffi: { ...koffi, address } } as unknown as Library;
  const calls = {
    library,
    now: (call: typeof sendmsg, fd: number, header: BigUint64Array) => ({
      value: call(fd, header),
      errno: 'EFAULT',
    }),
  };
  const sockets = new SocketCalls(calls as unknown as NativeCalls);
  // Compiled code keeps nothing that it does not use again.
  for (let i = 0; i < 20_000; i++) sockets.send(3, Buffer.from('warm'), [i]);
  sent.length = 0;
  collects = true;
  for (let i = 0; i < 8; i++) {
    const text = `message ${i}`;
    const { value } = sockets.send(3, Buffer.from(text), [i]);
    assert.equal(value, text.length);
    assert.deepEqual(sent.splice(0), [text, `fd ${i}`]);
  }
});
