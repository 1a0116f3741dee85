import { BlockError } from '../base/error.js';
import { MiB } from '../base/limits.js';
import type { InternalSnapshot, InternalSnapshots } from '../block/driver.js';
import type { RunStatus } from '../attach/run-state.js';

/** What livedisk keeps of its machine in a snapshot: its disks are all that it has, so it is not much. */
const MAGIC = Buffer.from('LIVEDISK VM STATE\n', 'latin1');
/** How QEMU's begins. */
const QEMU_MAGIC = Buffer.from('QEVM', 'latin1');
const MAX_STATE_BYTES = MiB;

export function encodeVmState(status: RunStatus): Buffer {
  return Buffer.concat([MAGIC, Buffer.from(`${JSON.stringify({ version: 1, status })}\n`, 'utf8')]);
}

/** That a snapshot's state is one of ours. Errors: unsupported, naming whose it is; those of reading. */
export async function checkVmState(snapshots: InternalSnapshots, snapshot: InternalSnapshot): Promise<void> {
  const { id, name, vmStateBytes } = snapshot;
  const state = Buffer.alloc(Math.min(vmStateBytes, MAX_STATE_BYTES));
  const head = state.subarray(0, MAGIC.length);
  await snapshots.readVmState(id, 0, head);
  if (head.subarray(0, QEMU_MAGIC.length).equals(QEMU_MAGIC)) {
    const whose = `The VM state of snapshot '${name}' is QEMU's, which is not supported by livedisk`;
    throw new BlockError('unsupported', whose, {
      hint: 'Go back to its disks offline with livedisk img snapshot -a',
    });
  }
  if (!head.equals(MAGIC) || vmStateBytes > MAX_STATE_BYTES) throw notOurs(name);
  await snapshots.readVmState(id, 0, state);
  try {
    const value: unknown = JSON.parse(state.toString('utf8', MAGIC.length));
    if (typeof value === 'object' && value !== null && 'version' in value && value.version === 1) return;
  } catch {
    // Told below.
  }
  throw notOurs(name);
}

function notOurs(name: string): BlockError {
  return new BlockError('corrupt', `The VM state of snapshot '${name}' cannot be read`);
}
