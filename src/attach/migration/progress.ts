import type { HostClock } from '../../host/host.js';
import type { MigrationInfo, MigrationStatus } from '../../schema/migration.js';

/** The page of the processor that QEMU's figures count in. */
const PAGE_BYTES = 4096;
const BITS_PER_BYTE = 8;

/** How long a move has taken so far, and how much it has sent. */
export class MoveProgress {
  channel: { readonly sentBytes: number } | undefined;
  readonly #clock: HostClock;
  readonly #startMs: number;
  #begunMs: number | undefined;
  #stoppedMs: number | undefined;
  #endedMs: number | undefined;
  #bytesAtStop = 0;
  #passes = 0;

  constructor(clock: HostClock) {
    this.#clock = clock;
    this.#startMs = clock.nowMs();
  }

  /** Counts from 1. */
  nextPass(): number {
    return ++this.#passes;
  }

  begun(): void {
    this.#begunMs = this.#clock.nowMs();
  }

  stopped(): void {
    this.#stoppedMs = this.#clock.nowMs();
    this.#bytesAtStop = this.channel?.sentBytes ?? 0;
  }

  ended(): void {
    this.#endedMs = this.#clock.nowMs();
  }

  /** As query-migrate has them. All that is sent but the state of disks and bitmaps is nothing here: there is no memory. */
  figures(status: MigrationStatus): Partial<MigrationInfo> {
    const now = this.#endedMs ?? this.#clock.nowMs();
    const transferred = this.channel?.sentBytes ?? 0;
    const totalMs = now - this.#startMs;
    const setupMs = (this.#begunMs ?? now) - this.#startMs;
    const transferMs = totalMs - setupMs;
    const atStop = this.#stoppedMs === undefined ? transferred : this.#bytesAtStop;
    const times =
      status === 'completed'
        ? { downtime: Math.round(now - (this.#stoppedMs ?? now)) }
        : { 'expected-downtime': 0 };
    return {
      ...times,
      'setup-time': Math.round(setupMs),
      'total-time': Math.round(totalMs),
      ram: {
        transferred,
        total: transferred,
        remaining: 0,
        duplicate: 0,
        skipped: 0,
        normal: Math.ceil(transferred / PAGE_BYTES),
        'normal-bytes': transferred,
        'dirty-pages-rate': 0,
        mbps: transferMs > 0 ? (transferred * BITS_PER_BYTE) / (transferMs * 1000) : 0,
        'dirty-sync-count': this.#passes,
        'postcopy-requests': 0,
        'page-size': PAGE_BYTES,
        'multifd-bytes': 0,
        'pages-per-second': 0,
        'precopy-bytes': atStop,
        'downtime-bytes': transferred - atStop,
        'postcopy-bytes': 0,
        'dirty-sync-missed-zero-copy': 0,
      },
    };
  }
}
