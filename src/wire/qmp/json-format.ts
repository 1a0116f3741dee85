import type { JsonValue } from '../../schema/types.js';

/** What can be written: JSON values, and members that are undefined are left out. */
export type Writable = JsonValue | undefined | { [key: string]: Writable } | readonly Writable[] | object;

/** One line as QEMU prints it: ", " and ": " as separators, ASCII only. */
export function formatJson(value: Writable): string {
  return format(value, undefined, 0);
}

/** Indented by 4, as with pretty=on. */
export function formatJsonPretty(value: Writable): string {
  return format(value, '    ', 0);
}

function format(value: Writable, indent: string | undefined, depth: number): string {
  if (value === null || value === undefined) return 'null';
  switch (typeof value) {
    case 'string':
      return quote(value);
    case 'number':
      return Number.isSafeInteger(value) ? String(value) : formatDouble(value);
    case 'boolean':
    case 'bigint':
      return String(value);
    default:
  }
  const pad = indent === undefined ? '' : `\r\n${indent.repeat(depth + 1)}`;
  const end = indent === undefined ? '' : `\r\n${indent.repeat(depth)}`;
  const separator = indent === undefined ? ', ' : ',';
  if (value instanceof Number) return formatDouble(value.valueOf());
  if (Array.isArray(value)) {
    if (value.length === 0) return `[${end}]`;
    const items = (value as Writable[]).map((item) => pad + format(item, indent, depth + 1));
    return `[${items.join(separator)}${end}]`;
  }
  const members = Object.entries(value as { [key: string]: Writable }).filter(
    ([, member]) => member !== undefined,
  );
  if (members.length === 0) return `{${end}}`;
  const items = members.map(([key, member]) => `${pad}${quote(key)}: ${format(member, indent, depth + 1)}`);
  return `{${items.join(separator)}${end}}`;
}

/** 17 significant digits without trailing zeros, as C's %.17g. JSON has no infinities: they become null. */
function formatDouble(value: number): string {
  if (!Number.isFinite(value)) return 'null';
  if (value === 0) return Object.is(value, -0) ? '-0' : '0';
  const [mantissa = '', exponent = '0'] = value.toExponential(16).split('e');
  const power = Number(exponent);
  const trim = (digits: string): string => (digits.includes('.') ? digits.replace(/\.?0+$/, '') : digits);
  if (power < -4 || power >= 17) {
    const digits = String(Math.abs(power)).padStart(2, '0');
    return `${trim(mantissa)}e${power < 0 ? '-' : '+'}${digits}`;
  }
  return trim(power < 0 ? value.toFixed(16 - power) : value.toPrecision(17));
}

/** A string literal in ASCII with upper-case escapes. */
function quote(text: string): string {
  const json = JSON.stringify(text);
  return json.replace(/\\(?:u([0-9a-f]{4})|.)|[\u007f-\uffff]/g, (match: string, digits?: string) => {
    if (digits !== undefined) return `\\u${digits.toUpperCase()}`;
    if (match.length > 1) return match;
    return `\\u${match.charCodeAt(0).toString(16).toUpperCase().padStart(4, '0')}`;
  });
}
