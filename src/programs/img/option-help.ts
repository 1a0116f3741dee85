import type { DriverDescription } from '../../block/driver.js';
import type { ToolOption } from '../../schema/create-options.js';
import { type Tool, ToolFailure } from './tool.js';

/** Options of the file that an image is made in, not of the image. */
const OF_FILES = new Set(['nocow', 'extent_size_hint']);

type Told = readonly [type: 'str' | 'size' | 'num' | 'bool (on/off)', about: string];

/** What is said of the options that formats share, by name. */
const ABOUT: Readonly<Record<string, Told>> = {
  backing_file: ['str', 'File name of a base image'],
  backing_fmt: ['str', 'Image format of the base image'],
  compat: ['str', 'Compatibility level (v2 [0.10] or v3 [1.1])'],
  compression_type: ['str', 'Compression method used for image cluster compression'],
  data_file: ['str', 'File name of an external data file'],
  data_file_raw: ['bool (on/off)', 'The external data file must stay valid as a raw image'],
  'cipher-alg': ['str', 'Name of encryption cipher algorithm'],
  'cipher-mode': ['str', 'Name of encryption cipher mode'],
  'hash-alg': ['str', 'Name of encryption hash algorithm'],
  'iter-time': ['num', 'Time to spend in PBKDF in milliseconds'],
  'ivgen-alg': ['str', 'Name of IV generator algorithm'],
  'ivgen-hash-alg': ['str', 'Name of IV generator hash algorithm'],
  keyslot: ['num', 'Select a single keyslot to modify explicitly'],
  'new-secret': ['str', 'New secret to set in the matching keyslots. Empty string to erase'],
  'old-secret': ['str', 'Select all keyslots that match this password'],
  state: ['str', 'Select new state of affected keyslots (active/inactive)'],
  'key-secret': ['str', 'ID of the secret that provides the keyslot passphrase'],
  'encrypt.cipher-alg': ['str', 'Name of encryption cipher algorithm'],
  'encrypt.cipher-mode': ['str', 'Name of encryption cipher mode'],
  'encrypt.format': ['str', "Encrypt the image, format choices: 'aes', 'luks'"],
  'encrypt.hash-alg': ['str', 'Name of encryption hash algorithm'],
  'encrypt.iter-time': ['num', 'Time to spend in PBKDF in milliseconds'],
  'encrypt.ivgen-alg': ['str', 'Name of IV generator algorithm'],
  'encrypt.ivgen-hash-alg': ['str', 'Name of IV generator hash algorithm'],
  'encrypt.key-secret': ['str', 'ID of secret providing qcow AES key or LUKS passphrase'],
  encryption: [
    'bool (on/off)',
    "Encrypt the image with format 'aes'. (Deprecated in favor of encrypt.format=aes)",
  ],
  extended_l2: ['bool (on/off)', 'Extended L2 tables'],
  extent_size_hint: ['size', 'Extent size hint for the image file, 0 to disable'],
  lazy_refcounts: ['bool (on/off)', 'Postpone refcount updates'],
  nocow: ['bool (on/off)', 'Turn off copy-on-write (valid only on btrfs)'],
  refcount_bits: ['num', 'Width of a reference count entry in bits'],
  size: ['size', 'Virtual disk size'],
};

/** Types of the schema, as help has them. */
const TYPE_NAMES: ReadonlyMap<string, Told[0]> = new Map([
  ['bool', 'bool (on/off)'],
  ['int', 'num'],
  ['size', 'size'],
]);

/** Whether -o asks what there is. */
export function asksForHelp(texts: readonly string[]): boolean {
  return texts.some((text) => text.split(',').some((part) => part === 'help' || part === '?'));
}

/**
 * Tells what may be said of a new image of a format: without a file's name its own options only. Errors: ToolFailure for
 * formats that are not made.
 */
export async function printOptionHelp(tool: Tool, format: string, filename?: string): Promise<void> {
  const driver = tool.opener.drivers.find(format);
  if (!driver) throw new ToolFailure(`Unknown file format '${format}'`);
  if (!driver.create) throw new ToolFailure(`Format driver '${format}' does not support image creation`);
  const hasFile = filename !== undefined && (await isInFile(tool, filename));
  const ofImage = (driver.toolOptions ?? []).filter(({ isLater }) => isLater !== true);
  const told = ofImage.filter((option) => hasFile || !isOfFile(driver, option));
  const lines = optionLines(driver, told.flatMap(namesOf));
  const head = filename === undefined ? `Supported ${format} options:` : 'Supported options:';
  const rest =
    'The protocol level may support further options.\nSpecify the target filename to include those options.\n';
  tool.out.print(`${head}\n${lines.join('')}${filename === undefined ? `\n${rest}` : ''}`);
}

/** A line each, in order of the names. */
export function optionLines(driver: DriverDescription, names: readonly string[]): string[] {
  return names.map((name) => optionText(driver, name)).sort();
}

async function isInFile(tool: Tool, filename: string): Promise<boolean> {
  const { driver } = await tool.opener.parseFilename(filename);
  return tool.opener.drivers.find(driver as string)?.createFile !== undefined;
}

/** A disk that is its file has no space but the file's. */
function isOfFile(driver: DriverDescription, { name }: ToolOption): boolean {
  return OF_FILES.has(name) || (name === 'preallocation' && driver.followsChildSize === true);
}

/** All of a group. */
function namesOf({ name }: ToolOption): string[] {
  return name.endsWith('.') ? Object.keys(ABOUT).filter((known) => known.startsWith(name)) : [name];
}

function optionText(driver: DriverDescription, name: string): string {
  const option = driver.toolOptions?.find((one) => one.name === name) ?? { name };
  const [type, about] = ABOUT[name] ?? ABOUT[name.replace(/^encrypt\./, '')] ?? toldByType(driver, option);
  return `  ${`${name}=<${type}>`.padEnd(22)} - ${about}\n`;
}

function toldByType(driver: DriverDescription, { name, member = '' }: ToolOption): Told {
  const { type } = driver.createOptions?.[member] ?? {};
  if (name === 'preallocation') {
    const modes = driver.followsChildSize === true ? 'off, falloc, full' : 'off, metadata, falloc, full';
    return ['str', `Preallocation mode (allowed values: ${modes})`];
  }
  if (name === 'cluster_size') return ['size', `${driver.name} cluster size`];
  const about = name.replaceAll('_', ' ');
  return [TYPE_NAMES.get(type?.name ?? '') ?? 'str', about];
}
