import { HASH_ALGORITHMS, type HashAlgorithm, hashContent } from '../../library/images/content-hash.js';
import { Arguments, cacheMode, options } from './arguments.js';
import { explain, type Tool, ToolFailure, UsageError } from './tool.js';

/** checksum [--algorithm=NAME] [-f FMT] [-T CACHE] [-p] [-U] [--image-opts] FILE ...: hashes of what disks show. */
export async function checksumCommand(tool: Tool, words: readonly string[]): Promise<number> {
  const taken = options('f:', 'T:', 'p', 'U|force-share', '|image-opts', '|algorithm:');
  const args = new Arguments(words, taken);
  const algorithm = hashAlgorithm(args.value('algorithm') ?? 'sha256');
  const cache = cacheMode(args, 'T', 'writeback', 'source cache');
  if (args.operands.length === 0) throw new UsageError('Expecting image file names');
  for (const filename of args.operands) {
    const image = await tool.open(filename, {
      format: args.value('f'),
      imageOpts: args.has('image-opts'),
      forceShare: args.has('force-share'),
      alone: true,
      cache: cache.options,
    });
    const progress = tool.progress(args.has('p')).begin();
    try {
      const hash = await hashContent(image, {
        algorithm,
        buffer: (lengthBytes) => tool.host.files.buffer(lengthBytes),
        onProgress: (done, total) => progress.update(done, total),
      });
      progress.finish();
      tool.out.print(`${hash}  ${filename}\n`);
    } catch (error) {
      throw explain(error, `${filename}: `);
    }
    await tool.close(image);
  }
  return 0;
}

/** Errors: ToolFailure. */
export function hashAlgorithm(text: string): HashAlgorithm {
  const algorithm = HASH_ALGORITHMS.find((one) => one === text);
  if (algorithm !== undefined) return algorithm;
  throw new ToolFailure(`Unknown checksum '${text}': ${HASH_ALGORITHMS.join(', ')}`);
}
