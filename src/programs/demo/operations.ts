import { assert } from '../../base/assert.js';
import type { Host } from '../../host/host.js';
import type { JsonObject } from '../../schema/types.js';
import type { DemoDaemon } from './session.js';
import type { Show } from './show.js';
import type { RecordWriter } from './writer.js';

/** The guest writes alone for this long between two operations. */
const BETWEEN_MS = 300;
const WAIT_MS = 100;
/** Jobs are held to this rate, so that one can watch. */
const SPEED_BYTES = 128 * 1024 * 1024;
/** What a mirror copies again for each record that the guest writes: with 64 KiB, the limit above would hold it up. */
const GRANULARITY_BYTES = 4096;
/** So long a job may take to become READY with that limit. */
const PATIENCE_MS = 3000;

/** A copy that an operation left behind, and the records that were complete around its point in time. */
export interface Copy {
  filename: string;
  what: string;
  /** Every record up to this one is in it. */
  notBefore: number;
  /** No record after this one is. */
  notAfter: number;
}

/** The document's operations one after the other, while the guest writes. */
export class Operations {
  readonly copies: Copy[] = [];
  readonly #host: Host;
  readonly #daemon: DemoDaemon;
  readonly #show: Show;
  readonly #guest: RecordWriter;

  constructor(host: Host, daemon: DemoDaemon, show: Show, guest: RecordWriter) {
    this.#host = host;
    this.#daemon = daemon;
    this.#show = show;
    this.#guest = guest;
  }

  async runAll(): Promise<void> {
    await this.#snapshots();
    await this.#stream();
    await this.#backup();
    await this.#commit();
    await this.#copyByMirror();
    await this.#mirrorAndPivot();
    await this.#activeCommit();
  }

  async #snapshots(): Promise<void> {
    this.#show.title('blockdev-snapshot-sync, three times: [A] <-- [B] <-- [C] <-- [D]');
    for (const [from, to] of [
      ['A', 'B'],
      ['B', 'C'],
      ['C', 'D'],
    ] as const) {
      await this.#guestWrites();
      await this.#snapshot(from, to);
    }
    await this.#after();
  }

  /** A chain again, for who looks around: [E] <-- [G] <-- [H] <-- [I]. */
  async rebuildChain(): Promise<void> {
    for (const [from, to] of [
      ['E', 'G'],
      ['G', 'H'],
      ['H', 'I'],
    ] as const) {
      await this.#guestWrites();
      await this.#snapshot(from, to);
    }
    await this.#after();
  }

  async #snapshot(from: string, to: string): Promise<void> {
    await this.#daemon.execute('blockdev-snapshot-sync', {
      'node-name': `node-${from}`,
      'snapshot-file': `${to.toLowerCase()}.qcow2`,
      'snapshot-node-name': `node-${to}`,
      format: 'qcow2',
    });
  }

  async #stream(): Promise<void> {
    this.#show.title('block-stream: [C] into [D], whose backing file becomes [B]');
    await this.#job('block-stream', 'stream0', { device: 'node-D', 'base-node': 'node-B' });
    await this.#after();
  }

  async #backup(): Promise<void> {
    this.#show.title('drive-backup: the disk as it is now, into backup.qcow2');
    const notBefore = this.#guest.completed;
    const args = { device: 'node-D', target: 'backup.qcow2', format: 'qcow2', sync: 'full' };
    const notAfter = await this.#job('drive-backup', 'backup0', args);
    this.copies.push({
      filename: 'backup.qcow2',
      what: "the backup's start",
      notBefore,
      notAfter,
    });
    await this.#after();
  }

  async #commit(): Promise<void> {
    this.#show.title('block-commit: [B] into [A]');
    await this.#job('block-commit', 'commit0', {
      device: 'node-D',
      'top-node': 'node-B',
      'base-node': 'node-A',
    });
    await this.#after();
  }

  async #copyByMirror(): Promise<void> {
    this.#show.title('drive-mirror, then block-job-cancel: a copy of the moment of the cancel');
    await this.#mirror('mirror0', 'copy.qcow2', 'node-Copy');
    const notBefore = this.#guest.completed;
    await this.#daemon.execute('block-job-cancel', { device: 'mirror0' });
    const notAfter = this.#guest.log.last;
    await this.#untilCompleted('mirror0', false);
    this.copies.push({ filename: 'copy.qcow2', what: 'the cancel', notBefore, notAfter });
    await this.#after();
  }

  async #mirrorAndPivot(): Promise<void> {
    this.#show.title('drive-mirror, then block-job-complete: the guest goes over to [E]');
    await this.#mirror('mirror1', 'e.qcow2', 'node-E');
    const notBefore = this.#guest.completed;
    await this.#daemon.execute('block-job-complete', { device: 'mirror1' });
    await this.#untilCompleted('mirror1', false);
    const notAfter = this.#guest.log.last;
    this.copies.push({ filename: 'd.qcow2', what: 'the pivot', notBefore, notAfter });
    await this.#after();
  }

  async #activeCommit(): Promise<void> {
    this.#show.title('a snapshot [F], then block-commit of the active layer: [F] into [E]');
    await this.#snapshot('E', 'F');
    await this.#after();
    await this.#daemon.execute('block-commit', { device: 'node-F', 'job-id': 'commit1', speed: SPEED_BYTES });
    await this.#untilReady('commit1');
    await this.#daemon.execute('block-job-complete', { device: 'commit1' });
    await this.#untilCompleted('commit1', false);
    await this.#after();
  }

  async #mirror(jobId: string, target: string, nodeName: string): Promise<void> {
    await this.#daemon.execute('drive-mirror', {
      ...{ 'job-id': jobId, device: 'node-D', target, format: 'qcow2' },
      ...{ 'node-name': nodeName, sync: 'full', speed: SPEED_BYTES, granularity: GRANULARITY_BYTES },
    });
    await this.#untilReady(jobId);
  }

  /** A job that ends by itself; answers the newest record when the command had returned. */
  async #job(command: string, jobId: string, args: JsonObject): Promise<number> {
    await this.#daemon.execute(command, { 'job-id': jobId, speed: SPEED_BYTES, ...args });
    const started = this.#guest.log.last;
    await this.#untilCompleted(jobId);
    return started;
  }

  async #untilReady(jobId: string): Promise<void> {
    const isOver = (): boolean =>
      this.#daemon.hasSeen('BLOCK_JOB_READY', jobId) || this.#daemon.hasSeen('BLOCK_JOB_COMPLETED', jobId);
    let isLifted = false;
    const patience = this.#host.clock.setTimer(PATIENCE_MS, () => {
      isLifted = true;
      void this.#liftLimit(jobId);
    });
    try {
      await this.#show.job(this.#host, this.#daemon, jobId, isOver);
    } finally {
      patience.cancel();
    }
    if (isLifted)
      this.#show.line('    the guest was faster than the job: block-job-set-speed lifted its limit');
    if (this.#daemon.hasSeen('BLOCK_JOB_READY', jobId))
      this.#show.line('    ready: what the guest writes now follows at once');
  }

  /** On a fast machine the guest may write more than the job may copy. A job that has ended meanwhile is no matter. */
  async #liftLimit(jobId: string): Promise<void> {
    await this.#daemon.execute('block-job-set-speed', { device: jobId, speed: 0 }).catch(() => undefined);
  }

  /** A job that was READY has shown its progress. */
  async #untilCompleted(jobId: string, shows = true): Promise<void> {
    const isOver = (): boolean => this.#daemon.hasSeen('BLOCK_JOB_COMPLETED', jobId);
    if (shows) await this.#show.job(this.#host, this.#daemon, jobId, isOver);
    while (!isOver()) await this.#daemon.nextEvent(this.#host, WAIT_MS);
    const data = this.#daemon.find('BLOCK_JOB_COMPLETED', jobId)?.data;
    assert(data?.['error'] === undefined, () => `${jobId} failed: ${JSON.stringify(data)}`);
  }

  async #guestWrites(): Promise<void> {
    await Promise.race([this.#host.clock.sleep(BETWEEN_MS), this.#guest.failed]);
  }

  async #after(): Promise<void> {
    await this.#guestWrites();
    await this.#show.chain(this.#daemon);
    const { completed, verified } = this.#guest;
    const longestMs = this.#guest.takeLongestWriteMs().toFixed(1);
    this.#show.line(
      `    guest: ${completed} records, ${verified} read back; longest write meanwhile ${longestMs} ms`,
    );
  }
}
