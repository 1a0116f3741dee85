import { given } from '../base/given.js';
import { BlockError } from '../base/error.js';
import { lookAtBacking, newImage } from '../block/create.js';
import type { ChildIo, Json, NewImageContext, NodeOptions } from '../block/driver.js';
import type { Opener } from '../block/open.js';
import { Permission } from '../block/permissions.js';
import { withBackend } from '../block/with-backend.js';
import type { Job } from './job.js';
import type { JobDriver } from './job-driver.js';
import type { WorkProgress } from './job-progress.js';
import type { CreatePlan } from './plans/create.js';

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

  async #createFile({ driver: name, filename, size }: FileOptions): Promise<void> {
    const { drivers, graph } = this.#opener;
    await drivers.get(name).createFile?.(graph.host, filename, size);
  }

  async #createAt({ driver: name, location, size }: PlaceOptions): Promise<void> {
    const { drivers, graph } = this.#opener;
    await drivers.get(name).createAt?.(graph.host, location, size);
  }

  async #formatImage(asked: FormatOptions): Promise<void> {
    const { graph, drivers } = this.#opener;
    const { driver: name, file, size, ...rest } = asked;
    const {
      'backing-file': backingFile,
      'backing-fmt': backingFormat,
      ...options
    } = { ...NO_BACKING, ...rest };
    const driver = drivers.format(name);
    const image = newImage(driver, given({ sizeBytes: size, backingFile, backingFormat, options }));
    await this.#withNode(file, async (io, imageName) => {
      const files = filesOf(imageName, this.#opener);
      const { [driver.dataFileOption ?? '']: reference } = image.options as NodeOptions;
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
