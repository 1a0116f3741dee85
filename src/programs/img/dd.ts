import { alignUp } from '../../base/align.js';
import { given } from '../../base/given.js';
import { MiB } from '../../base/limits.js';
import { createImage, newImage } from '../../block/create.js';
import type { BlockBackend } from '../../block/backend.js';
import type { DriverDescription } from '../../block/driver.js';
import { requestError } from '../io/session.js';
import { parseSize } from '../../schema/size.js';
import { Arguments, options, sizeOf } from './arguments.js';
import { explain, type Tool, ToolFailure } from './tool.js';

const SECTOR_BYTES = 512;
const DEFAULT_BLOCK_BYTES = 512;
const MAX_BLOCK_BYTES = 2 ** 31 - 1;
const PIECE_BYTES = MiB;

interface Operands {
  input: string;
  output: string;
  blockBytes: number;
  /** Which of the input's blocks is the first not to be copied; undefined: none. */
  count: number | undefined;
  /** Blocks to leave out at the beginning. */
  skip: number;
}

/** dd [--image-opts] [-U] [-f FMT] [-O FMT] [bs=BYTES] [count=BLOCKS] [skip=BLOCKS] if=FILE of=FILE */
export async function ddCommand(tool: Tool, words: readonly string[]): Promise<number> {
  const args = new Arguments(words, options('f:', 'O:', 'U|force-share', '|image-opts'));
  const operands = parseOperands(args.operands);
  const { input, output, blockBytes, count, skip } = operands;
  const source = await tool.open(input, {
    format: args.value('f'),
    imageOpts: args.has('image-opts'),
    forceShare: args.has('force-share'),
  });
  const format = args.value('O') ?? 'raw';
  const driver = targetDriver(tool, format);
  // Blocks that are left out count, too.
  const wanted = count === undefined ? source.lengthBytes : Math.min(source.lengthBytes, count * blockBytes);
  const start = skip * blockBytes;
  const lengthBytes = Math.max(0, wanted - start);
  await create(tool, driver, output, lengthBytes);
  const target = await tool.open(output, { format, write: true, resize: true });
  if (start > wanted) tool.out.error(`qemu-img: ${input}: cannot skip to specified offset\n`);
  await copy(tool, { source, target }, start, lengthBytes);
  return 0;
}

/** Errors: ToolFailure. */
function parseOperands(words: readonly string[]): Operands {
  const given = new Map<string, string>();
  for (const word of words) {
    const [, name = word, value] = /^([^=]*)(?:=(.*))?$/s.exec(word) ?? [];
    if (value === undefined || !['if', 'of', 'bs', 'count', 'skip'].includes(name))
      throw new ToolFailure(`unrecognized operand ${name}`);
    if (name === 'bs') blockSize(value);
    else if (name !== 'if' && name !== 'of') sizeOf(value, name);
    given.set(name, value);
  }
  const [input, output] = [given.get('if'), given.get('of')];
  if (input === undefined || output === undefined)
    throw new ToolFailure('Must specify both input and output files');
  const [bs, count, skip] = [given.get('bs'), given.get('count'), given.get('skip')];
  return {
    input,
    output,
    blockBytes: bs === undefined ? DEFAULT_BLOCK_BYTES : blockSize(bs),
    count: count === undefined ? undefined : sizeOf(count, 'count'),
    skip: skip === undefined ? 0 : sizeOf(skip, 'skip'),
  };
}

function blockSize(text: string): number {
  const bytes = parseSize(text) === undefined ? sizeOf(text, 'bs') : (parseSize(text) ?? 0);
  if (bytes >= 1 && bytes <= MAX_BLOCK_BYTES) return bytes;
  throw new ToolFailure(`Invalid bs specified. Must be between 1 and ${MAX_BLOCK_BYTES}.`);
}

function targetDriver(tool: Tool, format: string): DriverDescription {
  const driver = tool.opener.drivers.find(format);
  if (!driver) throw new ToolFailure('Unknown file format');
  if (!driver.create) throw new ToolFailure(`Format driver '${format}' does not support image creation`);
  return driver;
}

async function create(tool: Tool, driver: DriverDescription, output: string, bytes: number): Promise<void> {
  try {
    const image = given({ sizeBytes: alignUp(bytes, SECTOR_BYTES) });
    driver.checkNew?.(newImage(driver, image));
    await createImage(tool.opener, output, driver.name, image);
  } catch (error) {
    throw explain(error, `${output}: error while creating output image: `);
  }
}

/** All of it is written, zeroes too. */
async function copy(
  tool: Tool,
  { source, target }: { source: BlockBackend; target: BlockBackend },
  start: number,
  lengthBytes: number,
): Promise<void> {
  const whole = tool.host.files.buffer(PIECE_BYTES);
  for (let done = 0; done < lengthBytes;) {
    const buffer = whole.subarray(0, Math.min(PIECE_BYTES, lengthBytes - done));
    try {
      if (!source.tryRead(start + done, buffer)) await source.read(start + done, buffer);
    } catch (error) {
      throw new ToolFailure(`error while reading from input image file: ${requestError(error)}`);
    }
    try {
      if (!target.tryWrite(done, buffer, 0)) await target.write(done, buffer);
    } catch (error) {
      throw new ToolFailure(`error while writing to output image file: ${requestError(error)}`);
    }
    done += buffer.length;
  }
}
