import type { Host } from '../../host/host.js';
import type { JsonObject } from '../../schema/types.js';
import { ProgressMeter } from '../../view/progress-meter.js';
import { drawChain, type Layer } from './chain-view.js';
import type { DemoDaemon } from './session.js';

const PROGRESS_EVERY_MS = 100;
/** Where lines cannot be rewritten, fewer of them. */
const LOG_EVERY_MS = 500;

/** What the demo prints. */
export class Show {
  readonly #isTerminal = process.stdout.isTTY;
  #lastLineMs = -Infinity;

  line(text = ''): void {
    process.stdout.write(`${text}\n`);
  }

  title(text: string): void {
    this.line(`\n== ${text}`);
  }

  #progress(text: string, nowMs: number, isLast: boolean): void {
    if (this.#isTerminal) process.stdout.write(`\r\x1b[K    ${text}${isLast ? '\n' : ''}`);
    else if (isLast || nowMs - this.#lastLineMs >= LOG_EVERY_MS) {
      this.#lastLineMs = nowMs;
      this.line(`    ${text}`);
    }
  }

  /** Draws the progress of a job until `isOver`. */
  async job(host: Host, daemon: DemoDaemon, jobId: string, isOver: () => boolean): Promise<void> {
    const meter = new ProgressMeter();
    let last = { type: '', done: 0, total: 0 };
    this.#lastLineMs = -Infinity;
    while (!isOver()) {
      const jobs = (await daemon.execute('query-block-jobs')) as JsonObject[];
      const job = jobs.find(({ device }) => device === jobId);
      if (job) {
        last = { type: job['type'] as string, done: Number(job['offset']), total: Number(job['len']) };
        const now = host.clock.nowMs();
        this.#progress(meter.line(last.type, last.done, last.total, now), now, false);
      }
      await daemon.nextEvent(host, PROGRESS_EVERY_MS);
    }
    if (last.type === '') return;
    const now = host.clock.nowMs();
    this.#progress(meter.line(last.type, last.total, last.total, now), now, true);
  }

  /** The chain as query-block tells it. */
  async chain(daemon: DemoDaemon): Promise<void> {
    const [disk] = (await daemon.execute('query-block')) as JsonObject[];
    const nodes = (await daemon.execute('query-named-block-nodes', { flat: true })) as JsonObject[];
    const names = new Map(nodes.map((node) => [imageName(node), node['node-name'] as string]));
    const layers: Layer[] = [];
    let image = (disk?.['inserted'] as JsonObject)['image'] as JsonObject | undefined;
    for (; image; image = image['backing-image'] as JsonObject | undefined) {
      const filename = image['filename'] as string;
      layers.unshift({
        filename,
        nodeName: names.get(`${filename} ${image['format'] as string}`) ?? '',
        allocatedBytes: Number(image['actual-size']),
      });
    }
    this.line(drawChain(layers));
  }
}

function imageName(node: JsonObject): string {
  const image = node['image'] as JsonObject;
  return `${image['filename'] as string} ${image['format'] as string}`;
}
