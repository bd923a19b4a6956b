@own-service
Feature: Sessions
  A conversation has a length and a budget, both visible all along, and stays where its memory is.

  Background:
    Given pool "chat" with 1 engine of 1 slot
    And pool "pair" with 2 engines of 2 slots
    And the section sessions says
      """
      ttl_ms: 600000
      max_turns: 3
      budgets: { tokens: 100, time_ms: 600000 }
      """

  @ORCH-3021
  Scenario: A session takes its turns and no more
    When acme submits to "chat"
      | task   | session | max_tokens |
      | first  | diary   | 5          |
      | second | diary   | 5          |
      | third  | diary   | 5          |
      | fourth | diary   | 5          |
      | fresh  | letters | 5          |
    Then "first", "second", "third" and "fresh" are admitted
    And "fourth" is refused with
      | code         | ADMISSION_REJECT |
      | policy_label | session          |
      | retriable    | false            |
    And session "diary" of acme shows
      | turns | 3 |

  @ORCH-3099 @OC-CORE-1021 @OC-CORE-1023 @OC-CORE-1024
  Scenario: A budget is reserved at admission and settled at the end
    Given the engines of "chat" stop after 10 tokens of each task
    When acme submits to "chat"
      | task         | session | max_tokens |
      | tell me more | diary   | 60         |
      | and more     | diary   | 36         |
    Then "tell me more" is admitted
    And the answer to "tell me more" carries
      | X-Budget-Tokens-Remaining | 37 |
    And "and more" is refused with
      | code         | ADMISSION_REJECT |
      | policy_label | budget           |
      | retriable    | false            |
    And session "diary" of acme shows
      | tokens_budget_remaining | 37 |
      | turns                   | 1  |
    When "tell me more" is read up to token 10 and cancelled
    Then session "diary" of acme shows
      | tokens_budget_remaining | 87 |
    When "and more" is sent again
    Then "and more" is admitted
    And the answer to "and more" carries
      | X-Budget-Tokens-Remaining | 49 |

  @ORCH-3099 @ORCH-3100 @OC-CORE-1024
  Scenario: A reader sees what the budget has left
    Given the engines of "chat" stop after 1 tokens of each task
    When acme submits to "chat"
      | task         | session | max_tokens |
      | tell me more | diary   | 20         |
    Then the first metrics event of "tell me more" shows
      | tokens_budget_remaining | 77 |
      | queue_depth             | 0  |

  @ORCH-3009 @OC-CORE-1013 @OC-CORE-1012
  Scenario: A session stays on its replica, and a new one goes where there is room
    When acme submits to "pair"
      | task  | session |
      | hello | diary   |
    Then "hello" ends well
    And "hello" ran on r0
    When the engines of "pair" stop after 1 tokens of each task
    And zeta submits to "pair"
      | task      | session |
      | neighbour | letters |
    Then "neighbour" ran on r0
    When acme submits to "pair"
      | task     | session |
      | how so   | diary   |
      | newcomer | poems   |
    Then "how so" ran on r0
    And "newcomer" ran on r1

  @ORCH-3009
  Scenario: A session whose replica is gone goes on elsewhere, cold
    When acme submits to "pair"
      | task  | session |
      | hello | diary   |
    Then "hello" ran on r0
    And "hello" ends well
    When engine r0 of "pair" dies
    And the engines of "pair" stop after 1 tokens of each task
    And acme submits to "pair"
      | task   | session |
      | how so | diary   |
    Then "how so" ran on r1
    And the first metrics event of "how so" shows
      | kv_warmth   | false |
      | kv_migrated | false |
      | replica_id  | r1    |
