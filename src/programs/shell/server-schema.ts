import { objectsOf, textOf } from '../../view/answers.js';
import type { QmpClient } from '../../wire/qmp/client.js';
import { QmpError } from '../../wire/qmp/registry.js';
import type { JsonObject } from '../../schema/types.js';
import type { ValueKind } from './command-line.js';

export interface Argument {
  name: string;
  /** For people: int, str, [str], "raw|qcow2", an object's "{...}". */
  type: string;
  isRequired: boolean;
  /** For unions: the values of the tag with which it can be given. */
  cases: readonly string[];
}

interface MemberInfo {
  name: string;
  typeName: string;
  isRequired: boolean;
  cases: string[];
}

const VALUE_KINDS: { readonly [jsonType: string]: ValueKind } = {
  string: 'string',
  int: 'number',
  number: 'number',
  boolean: 'boolean',
};

/** Longest list of values that an argument's type shows. */
const MAX_SHOWN_CHARS = 60;

/** What a server says of its commands: by query-commands and query-qmp-schema, where it has them. */
export class ServerSchema {
  readonly commandNames: readonly string[];
  readonly #infos: ReadonlyMap<string, JsonObject>;

  private constructor(commandNames: readonly string[], infos: readonly JsonObject[]) {
    this.commandNames = commandNames;
    this.#infos = new Map(infos.map((info) => [textOf(info['name']) ?? '', info]));
  }

  /** Errors: those of a connection that ends. */
  static async fetch(client: QmpClient): Promise<ServerSchema> {
    const ask = async (command: string): Promise<JsonObject[]> => {
      try {
        return objectsOf(await client.execute(command));
      } catch (error) {
        if (error instanceof QmpError) return [];
        throw error;
      }
    };
    const [commands, infos] = await Promise.all([ask('query-commands'), ask('query-qmp-schema')]);
    return new ServerSchema(commands.flatMap(({ name }) => textOf(name) ?? []).sort(), infos);
  }

  /** What can stand at `path` in a command's arguments (below an object, at its top with no path). */
  arguments(command: string, path: readonly string[] = []): Argument[] {
    return this.#membersAt(command, path).map(({ name, typeName, isRequired, cases }) => ({
      name,
      type: this.#typeText(typeName),
      isRequired,
      cases,
    }));
  }

  /** How a word for the argument at `path` is read; undefined when nothing is known of it. */
  kindsOf(command: string, path: readonly string[]): ReadonlySet<ValueKind> | undefined {
    const kinds = this.#typesAt(command, path).flatMap((name) => this.#kinds(name));
    return kinds.length === 0 ? undefined : new Set(kinds);
  }

  /** Values that the argument at `path` is known to take. */
  valuesOf(command: string, path: readonly string[]): string[] {
    const values = this.#typesAt(command, path).flatMap((name) => {
      const info = this.#infos.get(name);
      if (info?.['meta-type'] === 'enum') return info['values'] as string[];
      return info?.['json-type'] === 'boolean' ? ['true', 'false'] : [];
    });
    return [...new Set(values)];
  }

  #typesAt(command: string, path: readonly string[]): string[] {
    const members = this.#membersAt(command, path.slice(0, -1));
    return members.filter(({ name }) => name === path.at(-1)).map(({ typeName }) => typeName);
  }

  #membersAt(command: string, path: readonly string[]): MemberInfo[] {
    const info = this.#infos.get(command);
    if (info?.['meta-type'] !== 'command') return [];
    let members = this.#members(info['arg-type'] as string);
    for (const part of path) {
      const types = new Set(members.filter(({ name }) => name === part).map(({ typeName }) => typeName));
      members = [...types].flatMap((name) => this.#members(name));
    }
    return members;
  }

  /** Of an object, its own and those of all its cases; of an alternate or array, those of its objects. */
  #members(typeName: string): MemberInfo[] {
    const info = this.#infos.get(typeName);
    if (info?.['meta-type'] === 'array') return this.#members(info['element-type'] as string);
    if (info?.['meta-type'] === 'alternate') {
      const types = (info['members'] as JsonObject[]).map(({ type }) => type as string);
      return types.flatMap((name) => this.#members(name));
    }
    if (info?.['meta-type'] !== 'object') return [];
    const own = this.#ownMembers(info);
    for (const variant of (info['variants'] ?? []) as JsonObject[]) {
      const caseInfo = this.#infos.get(variant['type'] as string);
      for (const member of caseInfo ? this.#ownMembers(caseInfo) : []) {
        const same = own.find(({ name, typeName: type }) => name === member.name && type === member.typeName);
        if (same) same.cases.push(variant['case'] as string);
        else own.push({ ...member, cases: [variant['case'] as string] });
      }
    }
    return own;
  }

  #ownMembers(info: JsonObject): MemberInfo[] {
    return (info['members'] as JsonObject[]).map((member) => ({
      name: member['name'] as string,
      typeName: member['type'] as string,
      isRequired: !('default' in member),
      cases: [],
    }));
  }

  #kinds(typeName: string): ValueKind[] {
    const info = this.#infos.get(typeName);
    switch (info?.['meta-type']) {
      case 'enum':
        return ['string'];
      case 'alternate':
        return (info['members'] as JsonObject[]).flatMap(({ type }) => this.#kinds(type as string));
      case 'builtin': {
        const kind = VALUE_KINDS[info['json-type'] as string];
        return kind ? [kind] : [];
      }
      default:
        return [];
    }
  }

  #typeText(typeName: string): string {
    const info = this.#infos.get(typeName);
    switch (info?.['meta-type']) {
      case 'array':
        return `[${this.#typeText(info['element-type'] as string)}]`;
      case 'enum': {
        const text = (info['values'] as string[]).join('|');
        return text.length <= MAX_SHOWN_CHARS
          ? text
          : `${text.slice(0, MAX_SHOWN_CHARS).replace(/\|[^|]*$/, '')}|...`;
      }
      case 'object':
        return '{...}';
      case 'alternate': {
        const types = (info['members'] as JsonObject[]).map(({ type }) => this.#typeText(type as string));
        return types.join(' or ');
      }
      default:
        return typeName;
    }
  }
}
