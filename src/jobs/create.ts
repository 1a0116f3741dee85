import { given } from '../base/given.js';
import { BlockError, errnoText } from '../base/error.js';
import { lookAtBacking, newImage } from '../block/create.js';
import type { ChildIo, Json, NewImageContext, NodeOptions } from '../block/driver.js';
import { checkFileSpace, takeFileSpace } from '../block/new-space.js';
import type { Opener } from '../block/open.js';
import { Permission } from '../block/permissions.js';
import { withBackend } from '../block/with-backend.js';
import type { Job } from './job.js';
import type { JobDriver } from './job-driver.js';
import type { WorkProgress } from './job-progress.js';
import type { CreatePlan } from './plans/create.js';

/** The longest that QEMU's images may be: a multiple of its largest alignment below 2^63. */
const QEMU_MAX_BYTES = 2n ** 63n - 2n ** 30n;

type FileOptions = Extract<CreatePlan['options'], { filename: string }>;
type PlaceOptions = Extract<CreatePlan['options'], { location: unknown }>;
type FormatOptions = Exclude<CreatePlan['options'], FileOptions | PlaceOptions>;

/** blockdev-create: one step of work that cannot be paused. */
export class CreateJob implements JobDriver {
  readonly type = 'create';
  readonly #options: CreatePlan['options'];
  readonly #opener: Opener;
  #done = 0;

  constructor(job: Job, plan: CreatePlan, opener: Opener) {
    job.setDriver(this);
    this.#options = plan.options;
    this.#opener = opener;
  }

  progress(): WorkProgress {
    const done = this.#done;
    return { doneBytes: done, zeroBytes: 0, skippedBytes: 0, remainingBytes: 1 - done };
  }

  async run(): Promise<void> {
    const options = this.#options;
    try {
      if ('filename' in options) await this.#createFile(options);
      else if ('location' in options) await this.#createAt(options);
      else await this.#formatImage(options);
    } finally {
      this.#done = 1;
    }
  }

  async #createFile(options: FileOptions): Promise<void> {
    const { driver: name, filename, preallocation = 'off', nocow = false } = options;
    const size = fileSizeOf(options);
    const { drivers, graph } = this.#opener;
    checkFileSpace(preallocation);
    await drivers.get(name).createFile?.(graph.host, filename, size, { noCopyOnWrite: nocow });
    if (preallocation === 'off') return;
    await this.#withNode({ driver: name, filename }, async (file) => {
      await takeFileSpace(file, 0, size, preallocation);
      await file.flush();
    });
  }

  async #createAt(options: PlaceOptions): Promise<void> {
    const { drivers, graph } = this.#opener;
    await drivers.get(options.driver).createAt?.(graph.host, options.location, sizeOf(options));
  }

  async #formatImage(asked: FormatOptions): Promise<void> {
    const { graph, drivers } = this.#opener;
    const { driver: name, file: disk, size: _size, header, ...rest } = { header: undefined, ...asked };
    const {
      'backing-file': backingFile,
      'backing-fmt': backingFormat,
      ...options
    } = { ...NO_BACKING, ...rest };
    const driver = drivers.format(name);
    const sizeBytes = sizeOf(asked, driver.tooLargeText);
    const image = newImage(driver, given({ sizeBytes, backingFile, backingFormat, options }));
    const file = header ?? disk;
    if (file === undefined)
      throw new BlockError('invalid', "Either the parameter 'header' or 'file' must be specified");
    if (header !== undefined) image.isHeaderApart = true;
    await this.#withNode(file, async (io, imageName) => {
      const files = filesOf(imageName, this.#opener);
      const { [driver.dataFileOption ?? '']: named } = image.options as NodeOptions;
      const reference = header === undefined ? named : disk;
      if (reference === undefined) return driver.create?.(io, image, graph.host, files);
      await this.#withNode(reference, async (data, filename) =>
        driver.create?.(io, { ...image, dataFile: { io: data, filename } }, graph.host, files),
      );
    });
  }

  async #withNode(
    reference: Json,
    body: (io: ChildIo, filename: string) => Promise<void> | undefined,
  ): Promise<void> {
    const { graph } = this.#opener;
    const node = await this.#opener.resolveReference(reference, { readOnly: false });
    const perm = Permission.write | Permission.resize;
    try {
      await withBackend(graph, node, perm, async ({ root }) => {
        if (root) await body(root, node.filename);
      });
    } finally {
      await graph.collect([node]);
    }
  }

  async clean(): Promise<void> {}
}

/** Errors: limit, in QEMU's words. */
function sizeOf({ size }: { size: number | bigint }, tooLargeText = errnoText('EFBIG')): number {
  if (typeof size === 'number') return size;
  const why =
    size >= 2n ** 63n
      ? 'Image size cannot be negative'
      : size > QEMU_MAX_BYTES
        ? `offset(${size}) exceeds maximum(${QEMU_MAX_BYTES})`
        : tooLargeText;
  throw new BlockError('limit', `Could not resize image: ${why}`, { errno: 'EFBIG' });
}

/** Of a file of the host, which says itself what it does not take. Errors: limit, in QEMU's words. */
function fileSizeOf({ size }: { size: number | bigint }): number {
  if (typeof size === 'number') return size;
  const errno = size >= 2n ** 63n ? 'EINVAL' : 'EFBIG';
  throw new BlockError('limit', `Could not resize file: ${errnoText(errno)}`, { errno });
}

/** Only the file that was given is the image's. */
function filesOf(filename: string, opener: Opener): NewImageContext {
  return {
    filename,
    create: () =>
      Promise.reject(new BlockError('unsupported', "Parameter 'extents' is not supported by livedisk yet")),
    lookAt: (backing, format) => lookAtBacking(opener, filename, backing, format),
    secret: (id) => opener.graph.objects.secret(id),
  };
}

const NO_BACKING: { 'backing-file'?: string; 'backing-fmt'?: string } = {};
