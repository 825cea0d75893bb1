import tseslint from 'typescript-eslint'

/** Who may import whom (docs/architecture.md, "Layers"). A rule without its reason would be removed by the next reader. */
const direction = (files, patterns, message) => ({
  files,
  rules: { 'no-restricted-imports': ['error', { patterns: [{ group: patterns, message }] }] },
})

export default tseslint.config(
  { ignores: ['dist/**', 'node_modules/**', '.tap/**', 'data/**'] },
  ...tseslint.configs.recommendedTypeChecked,
  {
    languageOptions: { parserOptions: { projectService: { allowDefaultProject: ['*.js'] } } },
    rules: {
      '@typescript-eslint/no-floating-promises': 'error',
      '@typescript-eslint/no-misused-promises': 'error',
      '@typescript-eslint/consistent-type-imports': 'error',
      '@typescript-eslint/switch-exhaustiveness-check': ['error', { considerDefaultExhaustiveForUnions: true }],
      '@typescript-eslint/no-unused-vars': ['error', { argsIgnorePattern: '^_' }],
      '@typescript-eslint/require-await': 'off',
    },
  },
  { files: ['**/*.js', '**/*.mjs'], ...tseslint.configs.disableTypeChecked },
  // tap's assertions may be awaited or not; a test that forgets to await its subject fails anyway.
  { files: ['test/**'], rules: { '@typescript-eslint/no-floating-promises': 'off' } },
  direction(
    ['shared/**'],
    ['**/proxy/**', '**/storage-node/**', '**/cli/**', 'pg', 'ioredis', 'fastify'],
    'shared/ is what both sides of the wire agree on: it knows neither side.',
  ),
  direction(
    ['storage-node/**'],
    ['**/proxy/**', '**/cli/**', 'pg', 'ioredis', 'fastify'],
    'A storage node knows no proxy, no PostgreSQL, no Redis and no format.',
  ),
  direction(['proxy/**'], ['**/storage-node/**', '**/cli/**'], 'The proxy reaches storage nodes over the wire only.'),
  direction(
    ['proxy/routing/**'],
    ['**/metadata/**', '**/artifacts/**', '**/coordination/**', 'pg', 'ioredis', '**/storage-node/**', '**/cli/**'],
    'Routing moves bytes between replicas; it knows no artifact, no SQL and no format.',
  ),
  direction(
    ['proxy/artifacts/**', 'proxy/access/**', 'proxy/http/**', 'proxy/api/**', 'proxy/tasks/**'],
    ['pg', 'ioredis', '**/storage-node/**', '**/cli/**'],
    'SQL stands in proxy/metadata only (coordination has its own driver), Redis in proxy/coordination only.',
  ),
)
