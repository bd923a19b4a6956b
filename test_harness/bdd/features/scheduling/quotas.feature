@own-service
Feature: Quotas of tokens and memory
  A tenant gets what it was promised, whoever of its people asks, and what it does not use is its
  own again. Nobody takes the memory of the others.

  Background:
    Given pool "minute" with 1 engine of 4 slots and
      """
      admission: { fairness: { kind: wfq, tenants: [ { id: acme, tokens_per_minute: 6000 } ] } }
      """
    And pool "memory" with 1 engine of 3 slots and
      """
      admission: { fairness: { kind: wfq, tenants: [ { id: acme, kv_bytes: 131072 } ] } }
      """
    And a token of context takes 256 bytes of KV in "memory"

  @ORCH-3036 @ORCH-2007
  Scenario: A tenant that has asked for its minute's worth is told when there is more
    Given the engines of "minute" stop after 2 tokens of each task
    When acme submits to "minute"
      | task  | max_tokens | ctx  |
      | first | 5990       | 8192 |
    And acme's colleague submits to "minute"
      | task   | max_tokens | priority |
      | second | 50         | batch    |
    And zeta submits to "minute"
      | task  | max_tokens | ctx  |
      | other | 50         | 8192 |
    Then "first" and "other" are admitted
    And "second" is refused with
      | code         | ADMISSION_REJECT |
      | policy_label | quota            |
      | retriable    | true             |
    And "second" is told to come back in 1 to 500 ms
    When "second" is sent again until it is admitted
    And "first" is read up to token 2 and cancelled
    And the engines of "minute" go on
    Then "second" and "other" end well

  @ORCH-3036
  Scenario: What a task does not use is the tenant's again when it ends
    Given the engines of "minute" stop after 2 tokens of each task
    When acme submits to "minute"
      | task   | max_tokens | ctx  |
      | early  | 3000       | 8192 |
      | second | 3001       | 8192 |
    Then "early" is admitted
    And "second" is refused with
      | policy_label | quota |
      | retriable    | true  |
    When "early" is read up to token 2 and cancelled
    And "second" is sent again
    Then "second" is admitted
    When "second" is read up to token 2 and cancelled
    And the engines of "minute" go on

  @ORCH-3036
  Scenario: A task that its tenant's quota never lets pass is told so
    When acme submits to "minute"
      | task | max_tokens | ctx  |
      | long | 6000       | 8192 |
    And acme submits to "memory"
      | task | ctx |
      | wide | 513 |
    Then "long" and "wide" are refused with
      | code         | ADMISSION_REJECT |
      | policy_label | quota            |
      | retriable    | false            |

  @ORCH-3036
  Scenario: A tenant whose KV is taken waits for its own tasks, and others pass
    Given the engines of "memory" stop after 1 tokens of each task
    When acme submits to "memory"
      | task   | ctx |
      | first  | 512 |
      | second | 256 |
      | third  | 256 |
    And zeta submits to "memory"
      | task  | ctx  |
      | other | 8192 |
    Then "first", "second", "third" and "other" are admitted
    And 2 tasks run in "memory", and "second" does not
    When the engines of "memory" go on
    Then "memory" ran "first", "other", "second", "third" in this order
    And "first", "second", "third" and "other" end well
