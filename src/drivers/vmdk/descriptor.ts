import { BlockError } from '../../base/error.js';

/** The text of a disk ("Virtual Disk Format 1.1", VMware): in a file of its own, or embedded in its only extent. */
export const MAX_DESCRIPTOR_BYTES = 2 ** 20;
export const NO_CID = 0xffffffff;
const SECTOR_BYTES = 512;

export interface ExtentLine {
  readonly access: string;
  readonly sectors: number;
  readonly type: string;
  readonly filename: string;
  /** Of a flat one, in bytes. */
  readonly offset: number;
}

export interface Descriptor {
  readonly text: string;
  readonly cid: number;
  readonly parentCid: number;
  readonly createType: string;
  readonly parentName: string | undefined;
}

/** A descriptor in a file of its own begins with comments and blank lines, then says its version. */
export function isDescriptor(bytes: Buffer): boolean {
  return /^(?:#[^\n]*\n| *\r?\n)*version=[123]\r?\n/.test(bytes.toString('latin1'));
}

/** Text up to the first NUL. Errors: invalid. */
export function parseDescriptor(bytes: Buffer): Descriptor {
  const text = bytes.toString('latin1').split('\0')[0] ?? '';
  const createType = /createType="([^"\n]*)"/.exec(text)?.[1];
  if (createType === undefined)
    throw new BlockError('invalid', 'invalid VMDK image descriptor', { errno: 'EINVAL' });
  const cid = hexOf(text, /^[ \t]*CID=[ \t]*([0-9a-f]*)/im);
  if (cid === undefined) throw new BlockError('invalid', 'Failed to read CID', { errno: 'EINVAL' });
  return {
    text,
    cid,
    parentCid: hexOf(text, /parentCID=[ \t]*([0-9a-f]*)/i) ?? NO_CID,
    createType,
    parentName: latinToUtf8(/parentFileNameHint="([^"\n]*)"/.exec(text)?.[1]),
  };
}

function hexOf(text: string, pattern: RegExp): number | undefined {
  const digits = pattern.exec(text)?.[1];
  if (digits === undefined) return undefined;
  return Number.parseInt(digits.slice(0, 8) || '0', 16);
}

/** Names in a descriptor are bytes of the host's, read as one byte a character. */
function latinToUtf8(text: string | undefined): string | undefined {
  return text === undefined ? undefined : Buffer.from(text, 'latin1').toString('utf8');
}

/** Types of the lines that we open; others are skipped, as QEMU does. */
const TYPES = ['FLAT', 'SPARSE', 'ZERO', 'VMFS', 'VMFSSPARSE', 'SESPARSE'];

/** Errors: invalid, in QEMU's words. */
export function parseExtents(text: string): ExtentLine[] {
  const extents: ExtentLine[] = [];
  for (const line of text.split('\n')) {
    const match = /^\s*(\S{1,10})\s+(\d+)\s+(\S{1,10})(?:\s+"([^"\n]{1,511})"(?:\s+(-?\d+))?)?/.exec(line);
    if (!match) continue;
    const [, access = '', sectorsText = '', type = '', name = '', offsetText] = match;
    if (access !== 'RW') continue;
    const sectors = Number(sectorsText);
    if (type === 'FLAT' && (offsetText === undefined || Number(offsetText) < 0)) throw badLine(line);
    if (type === 'VMFS' && offsetText !== undefined && Number(offsetText) !== 0) throw badLine(line);
    if (type !== 'ZERO' && name === '') throw badLine(line);
    if (sectors <= 0 || !TYPES.includes(type)) continue;
    const offset = Number(offsetText ?? 0) * SECTOR_BYTES;
    if (!Number.isSafeInteger(sectors * SECTOR_BYTES) || !Number.isSafeInteger(offset)) throw badLine(line);
    extents.push({ access, sectors, type, filename: latinToUtf8(name) ?? '', offset });
  }
  return extents;
}

function badLine(line: string): BlockError {
  return new BlockError('invalid', `Invalid extent line: ${line}`, { errno: 'EINVAL' });
}

export function hexCid(cid: number): string {
  return cid.toString(16).padStart(8, '0');
}

/** The same text with another CID. */
export function withCid(text: string, cid: number): string {
  return text.replace(/^([ \t]*CID=[ \t]*)[0-9a-f]*/im, `$1${hexCid(cid)}`);
}

export interface NewDescriptor {
  readonly cid: number;
  readonly parentCid: number;
  readonly createType: string;
  readonly parentName: string | undefined;
  readonly extents: readonly string[];
  readonly sizeBytes: number;
  readonly adapterType: string;
  readonly hardwareVersion: string;
  readonly toolsVersion: string;
}

export function encodeDescriptor(disk: NewDescriptor): Buffer {
  const heads = disk.adapterType === 'ide' ? 16 : 255;
  const parent = disk.parentName === undefined ? '' : `parentFileNameHint="${disk.parentName}"`;
  const lines = [
    '# Disk DescriptorFile',
    'version=1',
    `CID=${hexCid(disk.cid)}`,
    `parentCID=${hexCid(disk.parentCid)}`,
    `createType="${disk.createType}"`,
    parent,
    '# Extent description',
    ...disk.extents,
    '',
    '# The Disk Data Base',
    '#DDB',
    '',
    `ddb.virtualHWVersion = "${disk.hardwareVersion}"`,
    `ddb.geometry.cylinders = "${Math.floor(disk.sizeBytes / (63 * heads * SECTOR_BYTES))}"`,
    `ddb.geometry.heads = "${heads}"`,
    'ddb.geometry.sectors = "63"',
    `ddb.adapterType = "${disk.adapterType}"`,
    `ddb.toolsVersion = "${disk.toolsVersion}"`,
    '',
  ];
  return Buffer.from(lines.join('\n'), 'utf8');
}
