@own-service
Feature: A restart in the middle
  The service may die at any moment. What it has promised it keeps: order, shares, budgets and
  quotas.

  Background:
    Given pool "durable" with 1 engine of 1 slot and
      """
      queue: { capacity: 256, full_policy: reject }
      admission:
        fairness: { kind: wfq, tenants: [ { id: acme, weight: 3 }, { id: zeta, weight: 1 } ] }
      """
    And pool "metered" with 1 engine of 1 slot and
      """
      admission: { fairness: { kind: wfq, tenants: [ { id: zeta, rps: 0.01 } ] } }
      """
    And the section sessions says
      """
      budgets: { tokens: 100 }
      """

  @ORCH-3203 @ORCH-3004 @ORCH-3079 @ORCH-3099
  Scenario: Who ran runs first, who waited keeps the order, and nobody pays twice
    Given the engines of "durable" stop after 5 tokens of each task
    When acme submits to "durable"
      | task        | session | deadline_ms | max_tokens |
      | in the slot | diary   | 110000      | 40         |
      | by midnight | letters | 100000      | 20         |
      | by five     | letters | 60000       | 20         |
      | by six      | letters | 80000       | 20         |
    And the service is killed and started again
    Then session "diary" of acme shows
      | tokens_budget_remaining | 57 |
      | turns                   | 1  |
    And session "letters" of acme shows
      | tokens_budget_remaining | 34 |
      | turns                   | 3  |
    When the engines of "durable" go on
    Then since then "durable" ran "in the slot", "by five", "by six", "by midnight" in this order
    And "in the slot", "by five", "by six" and "by midnight" end well
    And session "diary" of acme shows
      | tokens_budget_remaining | 57 |

  @ORCH-3203 @ORCH-3075
  Scenario: Shares are what they were
    Given all slots of "durable" are taken
    When acme submits 80 batch tasks "acme" of 20 tokens to "durable"
    And zeta submits 80 batch tasks "zeta" of 20 tokens to "durable"
    And 30 tasks have run in "durable" before its engines stop
    And the service is killed and started again
    And the engines of "durable" go on
    Then in "durable" the tokens of "acme" and "zeta" were 3 to 1 while both waited
    And all of "acme" end well
    And all of "zeta" end well

  @ORCH-3203 @ORCH-3075
  Scenario: Who has had its turn does not get it again
    Given the engines of "durable" stop after 5 tokens of each task
    When zeta submits to "durable"
      | task        | max_tokens |
      | in the slot | 20         |
    And zeta submits 2 batch tasks "zeta" of 20 tokens to "durable"
    And acme submits 4 batch tasks "acme" of 20 tokens to "durable"
    And "in the slot" is read up to token 5 and cancelled
    And the service is killed and started again
    And the engines of "durable" go on
    Then "durable" ran "in the slot", "zeta 1", "acme 1", "acme 2", "acme 3", "zeta 2", "acme 4" in this order
    And all of "acme" end well

  @ORCH-3203 @ORCH-3077
  Scenario: A quota that is used up stays used up
    When zeta submits to "metered"
      | task  |
      | first |
    And the service is killed and started again
    And zeta submits to "metered"
      | task   |
      | second |
    And acme submits to "metered"
      | task  |
      | other |
    Then "second" is refused with
      | code         | ADMISSION_REJECT |
      | policy_label | quota            |
      | retriable    | true             |
    And "first" and "other" end well
