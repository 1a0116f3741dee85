import type { BlockBackend } from '../../block/backend.js';
import { PIECE_BYTES } from '../copy-window.js';
import type { Job } from '../job.js';
import type { PassedParts } from '../passed/passed-job.js';
import type { CheckedPlan } from '../plans/plan.js';
import { ChunkHashes } from './chunk-hashes.js';
import { CopyCheck, type Hold } from './copy-check.js';
import { writeManifest } from './manifest.js';

/** Hashes of a copy that goes on in such units, if its plan wants any: with what is known of another process. Errors: limit. */
export function hashesFor(
  job: Job,
  plan: CheckedPlan,
  sizeBytes: number,
  unitBytes: number,
): ChunkHashes | undefined {
  if (plan.verifies !== true && plan.manifest === undefined) return undefined;
  const hashes = new ChunkHashes(job.host.compute, sizeBytes, Math.min(unitBytes, PIECE_BYTES));
  const passed = job.from?.work.parts['hashes'];
  if (passed) hashes.goOnFrom(passed);
  return hashes;
}

/** What is done about a copy besides making it, as its plan wants. */
export class CheckedCopy {
  readonly #job: Job;
  readonly #plan: CheckedPlan;
  readonly #hashes: ChunkHashes | undefined;
  readonly #check: CopyCheck | undefined;

  constructor(
    job: Job,
    plan: CheckedPlan,
    copy: { hashes: ChunkHashes | undefined; source: BlockBackend; target: BlockBackend },
  ) {
    this.#job = job;
    this.#plan = plan;
    const { hashes, source, target } = copy;
    this.#hashes = hashes;
    if (hashes && plan.verifies === true) this.#check = new CopyCheck({ job, hashes, source, target });
  }

  /** For another process; see hashesFor(). Nothing is in flight. */
  passed(): PassedParts {
    return this.#hashes ? { hashes: this.#hashes.parts } : {};
  }

  /** Something is written to the target that was not read back yet, and it is to be. */
  get isDue(): boolean {
    return this.#check !== undefined && this.#hashes?.unchecked.isClean === false;
  }

  /** Reads back what was written since the last time. Errors: those of CopyCheck. */
  async verify(hold: Hold = (_, body) => body()): Promise<void> {
    if (!this.isDue) return;
    this.#job.enter('verifying');
    await this.#check?.run(hold, true);
  }

  /** The same in a section of the job's own that ends its work: guests are held, and it neither rests nor waits for its pace. */
  async verifyHeld(): Promise<void> {
    if (!this.isDue) return;
    this.#job.enter('verifying');
    await this.#check?.run((_, body) => body(), false);
  }

  /** The copy is what it is to be. Errors: those of writeManifest. */
  async writeManifest(): Promise<void> {
    const { manifest } = this.#plan;
    if (manifest !== undefined && this.#hashes) await writeManifest(this.#job.host, manifest, this.#hashes);
  }
}
