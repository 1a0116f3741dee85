import { DirtyBitmap } from '../../src/block/dirty-bitmap.js';
import type { ChildIo, DriverDescription, NodeOptions } from '../../src/block/driver.js';
import { COMMIT_TOP } from '../../src/drivers/commit-top/commit-top.js';
import { COPY_BEFORE_WRITE } from '../../src/drivers/copy-before-write/job-filter.js';
import { COPY_ON_READ } from '../../src/drivers/copy-on-read/copy-on-read.js';
import { MIRROR_TOP } from '../../src/drivers/mirror-top/mirror-top.js';
import { PassThrough } from '../../src/drivers/pass-through/pass-through.js';
import { CopyBeforeWrite } from '../../src/drivers/copy-before-write/point-in-time.js';
import { NEVER_HELD } from '../../src/block/copy-turn.js';
import { assertSameBytes } from './test-disk.js';

const GRANULE_BYTES = 4096;

/** A filter that only jobs put in, as one that options can open: nobody stands in the way of changes. */
function opened(filter: DriverDescription): DriverDescription {
  // What it asks of its child in a job's place is not what it asks as a disk's.
  return {
    ...filter,
    childPermissions: () => undefined,
    open: async (context) => new PassThrough(() => context.child('file')),
  };
}

/** Holds the content that the disk had when it was opened, as a backup does; compares when it is closed. */
class HoldingFilter extends PassThrough {
  readonly #atOpen: Buffer;
  readonly #held: Buffer;
  readonly #holder: CopyBeforeWrite;

  private constructor(child: () => ChildIo, atOpen: Buffer) {
    super(child);
    this.#atOpen = atOpen;
    this.#held = Buffer.alloc(atOpen.length, 0xee);
    const due = new DirtyBitmap(atOpen.length, GRANULE_BYTES);
    due.set(0, atOpen.length);
    this.#holder = new CopyBeforeWrite({
      due,
      sides: { source: NEVER_HELD, target: NEVER_HELD },
      copy: async (_turn, { offset, lengthBytes }) => {
        await child().read(offset, this.#held.subarray(offset, offset + lengthBytes));
        return lengthBytes;
      },
      breaks: 'snapshot',
      failed: (error) => {
        throw error;
      },
    });
    this.gate = this.#holder;
  }

  static async open(child: () => ChildIo): Promise<HoldingFilter> {
    const atOpen = Buffer.alloc(child().lengthBytes);
    await child().read(0, atOpen);
    return new HoldingFilter(child, atOpen);
  }

  override async close(): Promise<void> {
    await this.#holder.copy(0, this.#held.length);
    assertSameBytes(this.#held, this.#atOpen, 'the point in time at which the disk was opened');
  }
}

const HOLDING: DriverDescription = {
  ...COPY_BEFORE_WRITE,
  name: 'holding-filter',
  open: (context) => HoldingFilter.open(() => context.child('file')),
};

/** Each filter that jobs put into the graph, by the name it has there. */
export const jobFilterDrivers: readonly DriverDescription[] = [
  opened(COMMIT_TOP),
  opened(MIRROR_TOP),
  opened(COPY_ON_READ),
  HOLDING,
];

/** One above the other, all of them. */
export function underJobFilters(options: NodeOptions): NodeOptions {
  return jobFilterDrivers.reduce<NodeOptions>((file, { name }) => ({ driver: name, file }), options);
}
