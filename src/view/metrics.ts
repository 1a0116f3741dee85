import { fileNameOf, imageOf, type Operations, type User, type View } from './model.js';

type Labels = Readonly<Record<string, string>>;

interface Sample {
  labels: Labels;
  value: number;
}

/** Text of Prometheus' exposition format, version 0.0.4. Everything is as it was at one look. */
export function metricsText(view: View): string {
  const out = new Exposition();
  out.gauge('livedisk_up', 'Whether the server answered.', [
    { labels: { server: view.server.name }, value: 1 },
  ]);
  diskMetrics(view, out);
  imageMetrics(view, out);
  jobMetrics(view, out);
  out.gauge('livedisk_exports', 'Block exports.', [
    { labels: {}, value: view.users.filter(({ kind }) => kind === 'export').length },
  ]);
  return out.text();
}

function diskMetrics(view: View, out: Exposition): void {
  const isExport = ({ kind }: User): boolean => kind === 'export';
  requestMetrics(
    view.users.filter((user) => !isExport(user)),
    'disk',
    'a guest',
    out,
  );
  requestMetrics(view.users.filter(isExport), 'export', 'clients', out);
  const troubled = view.users.filter(({ ioStatus }) => ioStatus !== undefined);
  out.gauge(
    'livedisk_disk_io_error',
    'Whether an error stopped the disk.',
    troubled.map(({ label, ioStatus }) => ({ labels: { disk: label }, value: ioStatus === 'ok' ? 0 : 1 })),
  );
}

/** Of whoever the server counts. */
function requestMetrics(users: readonly User[], what: string, who: string, out: Exposition): void {
  const counted = users.flatMap(({ label, statistics }) => (statistics ? [{ label, statistics }] : []));
  const samples = (of: (one: Operations) => number): Sample[] =>
    counted.flatMap(({ label, statistics }) =>
      Object.entries(statistics).map(([operation, one]) => ({
        labels: { [what]: label, operation },
        value: of(one as Operations),
      })),
    );
  const family = (name: string, help: string, of: (one: Operations) => number): void =>
    out.counter(`livedisk_${what}_${name}_total`, help, samples(of));
  family('operations', `Requests of ${who} that were answered.`, ({ count }) => count);
  family('bytes', 'Bytes of those requests.', ({ bytes }) => bytes);
  family('failed_operations', 'Requests that failed.', ({ failed }) => failed);
  family('seconds', 'Time that requests took.', ({ totalMs }) => totalMs / 1000);
}

function imageMetrics(view: View, out: Exposition): void {
  const images = view.images.filter(({ kind }) => kind === 'image');
  const labels = (image: (typeof images)[number]): Labels => ({
    node: image.id,
    file: fileNameOf(image),
    format: image.driver,
  });
  out.gauge(
    'livedisk_image_virtual_bytes',
    'Length of the disk that an image holds.',
    images.map((image) => ({ labels: labels(image), value: image.virtualBytes })),
  );
  out.gauge(
    'livedisk_image_allocated_bytes',
    'Space that an image occupies.',
    images.flatMap((image) =>
      image.allocatedBytes === undefined ? [] : [{ labels: labels(image), value: image.allocatedBytes }],
    ),
  );
  out.gauge(
    'livedisk_image_corrupt',
    'Whether an image is marked corrupt.',
    images.map((image) => ({ labels: { node: image.id }, value: image.isCorrupt ? 1 : 0 })),
  );
  out.gauge(
    'livedisk_chain_layers',
    'Images in a chain.',
    view.chains.map(({ images: ids }) => ({
      labels: { top: ids.at(-1) ?? '' },
      value: ids.filter((id) => imageOf(view, id)?.kind === 'image').length,
    })),
  );
  out.gauge(
    'livedisk_bitmap_dirty_bytes',
    'What a dirty bitmap has recorded.',
    images.flatMap(({ id, bitmaps }) =>
      bitmaps.map(({ name, dirtyBytes }) => ({ labels: { node: id, bitmap: name }, value: dirtyBytes })),
    ),
  );
}

function jobMetrics({ jobs }: View, out: Exposition): void {
  const samples = (of: (job: View['jobs'][number]) => number): Sample[] =>
    jobs.map((job) => ({ labels: { job: job.id, type: job.type }, value: of(job) }));
  out.gauge(
    'livedisk_job_done',
    'What is done of a job: bytes, but for create and amend.',
    samples(({ done }) => done),
  );
  out.gauge(
    'livedisk_job_total',
    'All that a job has to do.',
    samples(({ total }) => total),
  );
  out.gauge(
    'livedisk_job_status',
    'The state that a job is in: its value is 1.',
    jobs.map(({ id, type, status }) => ({ labels: { job: id, type, status }, value: 1 })),
  );
  out.gauge(
    'livedisk_job_error',
    'Whether a job met an error.',
    samples(({ error, ioStatus }) => (error !== undefined || (ioStatus ?? 'ok') !== 'ok' ? 1 : 0)),
  );
}

class Exposition {
  readonly #lines: string[] = [];

  gauge(name: string, help: string, samples: readonly Sample[]): void {
    this.#family('gauge', name, help, samples);
  }

  counter(name: string, help: string, samples: readonly Sample[]): void {
    this.#family('counter', name, help, samples);
  }

  #family(type: string, name: string, help: string, samples: readonly Sample[]): void {
    // The same labels twice make a whole scrape invalid: names are the server's, and may be alike.
    const byLabels = new Map(samples.map(({ labels, value }) => [labelText(labels), value]));
    if (byLabels.size === 0) return;
    this.#lines.push(`# HELP ${name} ${help}`, `# TYPE ${name} ${type}`);
    for (const [labels, value] of byLabels) this.#lines.push(`${name}${labels} ${value}`);
  }

  text(): string {
    return `${this.#lines.join('\n')}\n`;
  }
}

const ESCAPES: Readonly<Record<string, string>> = { '\\': '\\\\', '"': '\\"', '\n': '\\n' };

function labelText(labels: Labels): string {
  const pairs = Object.entries(labels).map(
    ([name, value]) => `${name}="${value.replace(/[\\"\n]/g, (character) => ESCAPES[character] ?? '')}"`,
  );
  return pairs.length === 0 ? '' : `{${pairs.join(',')}}`;
}
