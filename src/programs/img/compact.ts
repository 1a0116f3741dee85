import { given } from '../../base/given.js';
import type { ImageCompaction } from '../../block/driver.js';
import { humanBytes } from '../../view/progress-meter.js';
import { cacheOptions } from '../io/cache.js';
import { Arguments, options } from './arguments.js';
import { explain, type Tool, ToolFailure } from './tool.js';

/** compact [-f FMT] [--image-opts] [-t CACHE] [-p] [-q] [--dry-run] [--output=human|json] FILE: makes a file shorter. */
export async function compactCommand(tool: Tool, words: readonly string[]): Promise<number> {
  const taken = options('f|format:', '|image-opts', 't:', 'p', 'q', '|dry-run', '|output:');
  const args = new Arguments(words, taken);
  const filename = args.image();
  const json = args.wantsJson();
  const isDryRun = args.has('dry-run');
  const cache = cacheOptions(args.value('t') ?? 'writeback');
  if (!cache) throw new ToolFailure(`Invalid cache option: ${args.value('t')}`);
  const backend = await tool.open(filename, {
    ...given({ format: args.value('format') }),
    imageOpts: args.has('image-opts'),
    write: !isDryRun,
    resize: !isDryRun,
    alone: true,
    backing: false,
    forCheck: true,
    cache: cache.options,
    writethrough: cache.writethrough,
  });
  const { instance, driver } = backend.node;
  if (!instance.compact)
    throw new ToolFailure(`Images of format '${driver.name}' are not compacted: 'convert' makes a new one`);
  const progress = tool.progress(args.has('p') && !args.has('q') && !isDryRun).begin();
  let result: ImageCompaction;
  try {
    result = await instance.compact({
      isDryRun,
      onProgress: (done, total) => {
        progress.update(done, total);
      },
    });
  } catch (error) {
    throw explain(error, `Could not compact '${filename}': `);
  }
  progress.complete();
  progress.finish();
  await tool.close(backend);
  if (json) tool.printJson(resultJson(result, isDryRun));
  else if (!args.has('q')) tool.out.print(resultText(result, isDryRun));
  return 0;
}

function resultJson(
  { formerBytes, lengthBytes, movedBytes, leakedBytes }: ImageCompaction,
  isDryRun: boolean,
) {
  return {
    'dry-run': isDryRun,
    'former-length': formerBytes,
    length: lengthBytes,
    moved: movedBytes,
    leaked: leakedBytes,
  };
}

function resultText(result: ImageCompaction, isDryRun: boolean): string {
  const { formerBytes, lengthBytes, movedBytes, leakedBytes } = result;
  const [was, is] = isDryRun ? ['is', 'would be about'] : ['was', 'is'];
  const lines = [
    `The file ${was} ${sizeOf(formerBytes)} long, and ${is} ${sizeOf(lengthBytes)}.`,
    `Moved: ${humanBytes(movedBytes)}. Leaked: ${humanBytes(leakedBytes)}.`,
  ];
  return `${lines.join('\n')}\n`;
}

function sizeOf(bytes: number): string {
  return `${humanBytes(bytes)} (${bytes} bytes)`;
}
