import { checkNoManifest, readManifest, writeManifest } from '../../jobs/verified/manifest.js';
import type { BlockBackend } from '../../block/backend.js';
import type { ChunkHashes } from '../../jobs/verified/chunk-hashes.js';
import type { SourceImages } from '../../library/images/source-images.js';
import { ChunkStream, verifyContent } from '../../library/images/verify.js';
import { Arguments, cacheMode, options } from './arguments.js';
import { type Tool, ToolFailure, UsageError } from './tool.js';

/** Exit status for trouble; 1 says that the image is not what its manifest says. */
export const TROUBLE = 2;
/** A chunk that differs as often as this, copied again in between, is given up. */
const ATTEMPTS = 3;

/** verify [-f FMT] [-T CACHE] [-p] [-q] [-U] [--image-opts] FILE [MANIFEST]: compares a disk with its manifest. */
export async function verifyCommand(tool: Tool, words: readonly string[]): Promise<number> {
  const taken = options('f:', 'T:', 'p', 'q', 'U|force-share', '|image-opts');
  const args = new Arguments(words, taken);
  const cache = cacheMode(args, 'T', 'writeback', 'source cache');
  const [filename, manifest = `${filename}.manifest`] = args.operands;
  if (filename === undefined || args.operands.length > 2)
    throw new UsageError('Expecting an image file name, and that of its manifest');
  const image = await tool.open(filename, {
    format: args.value('f'),
    imageOpts: args.has('image-opts'),
    forceShare: args.has('force-share'),
    cache: cache.options,
  });
  const hashes = await readManifest(tool.host, manifest, image.lengthBytes);
  const progress = tool.progress(args.has('p')).begin();
  let differing = 0;
  const say = (text: string): void => void (args.has('q') || tool.out.print(`${text}\n`));
  await verifyContent(image, hashes, {
    onDiffers: ({ offset, lengthBytes }) => {
      differing++;
      say(`Differs: ${lengthBytes} bytes at ${offset}`);
    },
    buffer: (lengthBytes) => tool.host.files.buffer(lengthBytes),
    onProgress: (done, total) => progress.update(done, total),
  });
  progress.complete();
  progress.finish();
  await tool.close(image);
  const covered = hashes.known.dirtyBytes;
  say(
    differing === 0
      ? `The image is what its manifest says (${covered} of ${hashes.sizeBytes} bytes).`
      : `The image is not what its manifest says: ${differing} chunks differ.`,
  );
  return differing === 0 ? 0 : 1;
}

/** What `convert --manifest` and `--verify` do about a copy. */
export class ConvertCheck {
  readonly stream: ChunkStream;
  readonly #tool: Tool;
  readonly #manifest: string | undefined;
  readonly #verifies: boolean;

  /** Undefined: nothing is asked for. Errors: ToolFailure; exists. */
  static async of(
    tool: Tool,
    args: Arguments,
    source: SourceImages,
    hasBacking: boolean,
  ): Promise<ConvertCheck | undefined> {
    const [manifest, verifies] = [args.value('manifest'), args.has('verify')];
    if (manifest === undefined && !verifies) return undefined;
    const asked = verifies ? '--verify' : '--manifest';
    const other = hasBacking ? 'B' : ['C', 'W'].find((option) => args.has(option));
    if (other !== undefined) throw new ToolFailure(`${asked} and -${other} are mutually exclusive`);
    if (manifest !== undefined) await checkNoManifest(tool.host, manifest);
    return new ConvertCheck(tool, { manifest, verifies }, source.lengthBytes);
  }

  private constructor(
    tool: Tool,
    { manifest, verifies }: { manifest: string | undefined; verifies: boolean },
    diskBytes: number,
  ) {
    this.#tool = tool;
    this.#manifest = manifest;
    this.#verifies = verifies;
    this.stream = new ChunkStream(tool.host.compute, diskBytes);
  }

  /** After the copy is flushed. Errors: ToolFailure; those of files and requests. */
  async finish(source: SourceImages, target: BlockBackend): Promise<void> {
    const { hashes } = this.stream;
    if (this.#manifest !== undefined && target.lengthBytes !== hashes.sizeBytes)
      throw new ToolFailure('--manifest needs an output as long as what is copied');
    if (this.#verifies)
      await verifyContent(target, hashes, {
        onDiffers: ({ offset, lengthBytes }) => this.#repair(offset, lengthBytes, source, target),
        buffer: (bytes) => this.#tool.host.files.buffer(bytes),
      });
    await target.flush();
    if (this.#manifest !== undefined) await writeManifest(this.#tool.host, this.#manifest, hashes);
  }

  async #repair(
    offset: number,
    lengthBytes: number,
    source: SourceImages,
    target: BlockBackend,
  ): Promise<void> {
    const { hashes } = this.stream;
    const buffer = this.#tool.host.files.buffer(lengthBytes);
    const isOther = async (): Promise<boolean> => (await hashes.differing(offset, buffer)).length > 0;
    for (let attempt = 1; attempt < ATTEMPTS; attempt++) {
      this.#tool.out.error(
        `qemu-img: warning: the copy differs in ${lengthBytes} bytes at ${offset}: copied again\n`,
      );
      await source.read(offset, buffer);
      if (await isOther()) throw givenUp(offset, hashes);
      await target.write(offset, buffer);
      await target.read(offset, buffer);
      if (!(await isOther())) return;
    }
    throw givenUp(offset, hashes);
  }
}

function givenUp(offset: number, { chunkBytes }: ChunkHashes): ToolFailure {
  return new ToolFailure(
    `the copy stays different from what was copied, in ${chunkBytes} bytes at ${offset}`,
  );
}
