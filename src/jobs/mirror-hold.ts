import { assert } from '../base/assert.js';
import { DirtyBitmap, type Stretch } from '../block/dirty-bitmap.js';
import type { Node } from '../block/node.js';
import { CopyBeforeWrite } from '../drivers/copy-before-write/point-in-time.js';
import { dueAgain } from './due-again.js';
import type { Job } from './job.js';
import { asError } from './job-errors.js';
import type { MirrorCopy } from './mirror-copy.js';

/** The point in time that a mirror's target is to hold: what is dirty then is copied before guests change it. */
export class MirrorHold {
  readonly #job: Job;
  readonly #copy: MirrorCopy;
  readonly gate: CopyBeforeWrite;
  readonly #target: Node;
  readonly #changed: DirtyBitmap;
  #failure: Error | undefined;

  /** In a drained section of the source: this moment. The bitmap of what is dirty records no more. */
  constructor(job: Job, { source, target }: { source: Node; target: Node }, copy: MirrorCopy) {
    this.#job = job;
    this.#target = target;
    this.#copy = copy;
    const { dirtyBitmaps } = source;
    // Small granules, so that a guest's write waits for little.
    const due = new DirtyBitmap(copy.dirty.sizeBytes, copy.unitBytes);
    due.merge(copy.dirty);
    due.enabled = false;
    dirtyBitmaps.splice(dirtyBitmaps.indexOf(copy.dirty), 1, due);
    copy.dirty = due;
    this.#changed = new DirtyBitmap(due.sizeBytes, copy.unitBytes);
    this.gate = new CopyBeforeWrite({
      due,
      changed: this.#changed,
      sides: copy.sides,
      copy: (turn, stretch, forGuest) => {
        const fate = forGuest ? 'lost' : 'policy';
        return copy.mover.copyFirst(turn, stretch, { unit: copy.unitBytes, fate });
      },
      breaks: 'snapshot',
      failed: (error) => {
        this.#failure ??= asError(error);
        this.#job.pace.kick();
      },
      copied: (bytes) => copy.addDone(bytes),
    });
  }

  /** What the target may have lost of it is copied again where guests have not changed it. Answers whether any is to be. */
  lookForLoss(): boolean {
    dueAgain(this.#target, this.#copy.dirty, this.#changed);
    return !this.#copy.dirty.isClean;
  }

  /** Copies what guests leave to be copied. Throws when some of the moment is lost. */
  async copyAll(): Promise<void> {
    const { dirty, window } = this.#copy;
    const next = (offset: number): Stretch | undefined =>
      dirty.nextDirty(offset, dirty.sizeBytes, window.pieceBytes(dirty.granularityBytes));
    for (let at = next(0); at; at = next(at.offset + at.lengthBytes)) {
      await window.room();
      if (this.#failure !== undefined) break;
      const piece = at;
      window.launch(piece.lengthBytes, () => this.gate.copy(piece.offset, piece.lengthBytes));
    }
    await window.finish();
    if (this.#failure !== undefined) throw this.#failure;
    assert(dirty.isClean, 'a mirror that ends has copied all');
  }
}
