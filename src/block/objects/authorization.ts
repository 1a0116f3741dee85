import { BlockError, errnoOf, errnoText } from '../../base/error.js';
import { matchesGlob } from '../../base/glob.js';
import { parseJson } from '../../wire/qmp/json-parser.js';
import { arrayOf, bool, enumOf, isJsonObject, str } from '../../schema/types.js';
import { AuthzListProperties, AuthzRule } from '../../schema/objects.js';
import { type ObjectType, type PropertyValues, UserObject } from './object.js';
import { readWholeFile } from './whole-file.js';

/** Says who may come in, by the name that their certificate shows. */
export abstract class Authorization extends UserObject {
  abstract isAllowed(identity: string): boolean | Promise<boolean>;
}

const PARENTS = ['authz', 'object'];

class SimpleAuthorization extends Authorization {
  isAllowed(identity: string): boolean {
    return identity === this.get('identity');
  }
}

/** One name. */
export const AUTHZ_SIMPLE: ObjectType = {
  name: 'authz-simple',
  parents: PARENTS,
  properties: [{ name: 'identity', qomType: 'string', type: str }],
  make: (id, values) => new SimpleAuthorization(id, AUTHZ_SIMPLE, values),
};

interface Rules {
  policy?: 'deny' | 'allow';
  rules?: readonly AuthzRule[];
}

/** The first rule that matches decides, else the policy. */
function decide({ policy = 'deny', rules = [] }: Rules, identity: string): boolean {
  const rule = rules.find(({ match, format }) =>
    format === 'glob' ? matchesGlob(match, identity) : match === identity,
  );
  return (rule?.policy ?? policy) === 'allow';
}

class ListAuthorization extends Authorization {
  isAllowed(identity: string): boolean {
    return decide(this.values, identity);
  }
}

export const AUTHZ_LIST: ObjectType = {
  name: 'authz-list',
  parents: PARENTS,
  properties: [
    {
      name: 'policy',
      qomType: 'QAuthZListPolicy',
      type: enumOf('QAuthZListPolicy', ['deny', 'allow']),
      initial: 'deny',
    },
    { name: 'rules', qomType: 'QAuthZListRule', type: arrayOf(AuthzRule), initial: [] },
  ],
  make: (id, values) => new ListAuthorization(id, AUTHZ_LIST, values),
};

/** The rules of a file, as they are when somebody comes; with refresh=off as they were at first. */
class ListFileAuthorization extends Authorization {
  readonly #read: () => Promise<Rules>;
  readonly #first: Rules;

  constructor(id: string, values: PropertyValues, read: () => Promise<Rules>, first: Rules) {
    super(id, AUTHZ_LIST_FILE, values);
    this.#read = read;
    this.#first = first;
  }

  async isAllowed(identity: string): Promise<boolean> {
    if (this.get('refresh') === false) return decide(this.#first, identity);
    // Nobody comes in while the list cannot be read.
    const rules = await this.#read().catch((): Rules => ({}));
    return decide(rules, identity);
  }
}

export const AUTHZ_LIST_FILE: ObjectType = {
  name: 'authz-list-file',
  parents: PARENTS,
  properties: [
    { name: 'filename', qomType: 'string', type: str },
    { name: 'refresh', qomType: 'bool', type: bool, initial: true },
  ],
  async make(id, values, { host }) {
    const filename = values['filename'] as string;
    const read = async (): Promise<Rules> => parseRules(await readWholeFile(host, filename));
    try {
      return new ListFileAuthorization(id, values, read, await read());
    } catch (error) {
      if (!(error instanceof BlockError) || error.errno === undefined) throw error;
      const errno = errnoOf(error);
      const text = `Unable to read ${filename}: Failed to open file “${filename}”: ${errnoText(errno)}`;
      throw new BlockError(error.kind, text, { cause: error, errno });
    }
  },
};

/** Errors: invalid. */
function parseRules(text: Buffer): Rules {
  const value = parseJson(text.toString('utf8'));
  if (!isJsonObject(value))
    throw new BlockError('invalid', 'The rules of an authz-list-file are a JSON object');
  return AuthzListProperties.parse(value, '', 'qmp');
}
