import { BlockError } from '../../base/error.js';
import { FlatOptions } from '../../schema/flat.js';

export interface ImageOptsRules {
  /** What a first value without "=" is the value of; without one it is a flag, as any other is. */
  impliedKey?: string;
  warn: (text: string) => void;
}

/**
 * An image as --image-opts describes it: `driver=qcow2,file.filename=a.qcow2`. ",," in a value is a comma, a name alone
 * is a flag (on, or off where it begins with "no"), the last of equal names counts.
 * Errors: invalid for an `id` that is none, in QEMU's words.
 */
export function parseImageOpts(text: string, { impliedKey, warn }: ImageOptsRules): FlatOptions {
  const parameters = [...split(text, impliedKey)];
  const id = parameters.find(({ key, isFlag }) => key === 'id' && !isFlag);
  if (id && !/^[A-Za-z][A-Za-z0-9._-]*$/.test(id.value)) throw badId();
  for (const { key, value, isFlag } of parameters) {
    if (!isFlag || key === 'help' || key === '?') continue;
    const given = value === 'off' ? `no${key}` : key;
    warn(`short-form boolean option '${given}' deprecated\nPlease use ${key}=${value} instead`);
  }
  return FlatOptions.of(Object.fromEntries(parameters.map(({ key, value }) => [key, value])));
}

function badId(): BlockError {
  return new BlockError('invalid', "Parameter 'id' expects an identifier", {
    hint: "Identifiers consist of letters, digits, '-', '.', '_', starting with a letter.",
  });
}

export interface Parameter {
  key: string;
  value: string;
  isFlag: boolean;
}

/** Its parameters, one by one. */
export function* split(text: string, impliedKey: string | undefined): Generator<Parameter> {
  for (let at = 0; at < text.length;) {
    const name = /^[^=,]*/.exec(text.slice(at))?.[0] ?? '';
    const hasValue = text[at + name.length] === '=';
    if (hasValue || (at === 0 && impliedKey !== undefined)) {
      const start = hasValue ? at + name.length + 1 : at;
      const raw = /^(?:[^,]|,,)*/.exec(text.slice(start))?.[0] ?? '';
      yield { key: hasValue ? name : (impliedKey ?? ''), value: raw.replaceAll(',,', ','), isFlag: false };
      at = start + raw.length + 1;
    } else {
      const isOff = name.startsWith('no');
      yield { key: isOff ? name.slice(2) : name, value: isOff ? 'off' : 'on', isFlag: true };
      at += name.length + 1;
    }
  }
}
