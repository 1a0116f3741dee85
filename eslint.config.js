import tseslint from 'typescript-eslint';

/** Modules that decode on-disk or on-wire integers: they may use bitwise operators. Elsewhere only flags may be or-ed. */
const CODECS = [
  'src/base/**',
  'src/codec/**',
  'src/wire/nbd/**',
  'src/wire/vhost-user/**',
  'src/drivers/qcow2/**',
  'src/drivers/tables/**',
  'src/host/**',
  'src/block/permissions.ts',
  'src/block/request.ts',
  'test/kit/**',
  'test/peers/codec.test.ts',
  'test/engine/device-endpoints.test.ts',
  'test/engine/vhost-user.test.ts',
];

const PRIVATE_GETTER = {
  selector: "MethodDefinition[kind='get'] > PrivateIdentifier.key",
  message: 'A private getter is a call into the runtime each time: make it a method.',
};

export default tseslint.config(
  { ignores: ['dist/**', '.compiled/**', 'node_modules/**', '**/*.mjs', 'eslint.config.js'] },
  ...tseslint.configs.recommendedTypeChecked,
  {
    languageOptions: { parserOptions: { project: ['./tsconfig.json', './tsconfig.page.json'] } },
    rules: {
      '@typescript-eslint/no-floating-promises': 'error',
      '@typescript-eslint/no-misused-promises': 'error',
      '@typescript-eslint/switch-exhaustiveness-check': [
        'error',
        { considerDefaultExhaustiveForUnions: true },
      ],
      '@typescript-eslint/no-explicit-any': 'error',
      '@typescript-eslint/require-await': 'off',
      '@typescript-eslint/no-unused-vars': ['error', { argsIgnorePattern: '^_', varsIgnorePattern: '^_' }],
      eqeqeq: 'error',
      '@typescript-eslint/no-this-alias': 'off',
      'no-bitwise': ['error', { allow: ['|'] }],
      'no-restricted-syntax': [
        'error',
        {
          selector:
            "BinaryExpression[operator='|']:not(:has(MemberExpression[object.name=/(Flag|Permission)$/]))",
          message: 'Offsets are larger than 32 bits: only flags are or-ed.',
        },
        PRIVATE_GETTER,
      ],
      'max-lines': ['error', { max: 700 }],
    },
  },
  { files: CODECS, rules: { 'no-bitwise': 'off', 'no-restricted-syntax': ['error', PRIVATE_GETTER] } },
  // node:test's test() returns a promise that the runner itself awaits.
  {
    files: ['**/*.test.ts', 'test/**', 'bench/**'],
    rules: { '@typescript-eslint/no-floating-promises': 'off' },
  },
);
